//! The file of a named baseline: a JSON document of one schema version,
//! subjects sorted, so that a change is a small diff. It is written to a
//! temporary file that is then renamed: a torn write leaves the old one whole.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::detect::{fleet::Profiles, series::Subject, trend::Profile};

pub const SCHEMA: &str = "claw-ebpf/baseline/1";
const EXTENSION: &str = ".baseline.json";
/// Largest file that is read.
const LARGEST: u64 = 1 << 30;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    pub schema: String,
    pub name: String,
    pub environment: Option<String>,
    /// What it was learned from.
    pub source: String,
    pub entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    #[serde(flatten)]
    pub subject: Subject,
    #[serde(flatten)]
    pub profile: Profile,
}

#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    #[error(
        "there is no baseline {name} ({path}); `claw-ebpf baseline list` shows those there are"
    )]
    Missing { name: String, path: PathBuf },
    #[error("baseline {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is no baseline of claw-ebpf: {why}; make one with `claw-ebpf baseline save`")]
    Foreign { path: PathBuf, why: String },
    #[error(
        "baseline {path} is of version {found}, this program reads {SCHEMA}: use the claw-ebpf \
         that made it, or save it anew"
    )]
    Version { path: PathBuf, found: String },
    #[error("`{0}` is no name for a baseline: letters, digits, `.`, `-` and `_` only")]
    Name(String),
    #[error("baseline {0} exists already; --force replaces it")]
    Exists(PathBuf),
    #[error(transparent)]
    Input(#[from] crate::input::InputError),
    #[error("{0}")]
    Recording(String),
}

/// Where named baselines are kept: $CLAW_EBPF_BASELINES, else a folder here.
pub fn folder() -> PathBuf {
    std::env::var_os("CLAW_EBPF_BASELINES")
        .map_or_else(|| PathBuf::from(".claw-ebpf"), PathBuf::from)
}

/// The file of a name; a path stays one.
///
/// # Errors
/// When the name has characters that do not belong in a file's name.
pub fn path_of(name: &str) -> Result<PathBuf, BaselineError> {
    if name.contains('/') || name.ends_with(".json") {
        return Ok(PathBuf::from(name));
    }
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(fine) {
        return Err(BaselineError::Name(name.to_owned()));
    }
    Ok(folder().join(format!("{name}{EXTENSION}")))
}

/// Names of the baselines in `folder`.
///
/// # Errors
/// When the folder cannot be read; one that is not there holds none.
pub fn list(folder: &Path) -> Result<Vec<String>, BaselineError> {
    let fail = |source| BaselineError::Io { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(fail(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(fail)?.file_name();
        names.extend(name.to_str().and_then(|n| n.strip_suffix(EXTENSION)).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

impl Baseline {
    pub fn new(name: &str, environment: Option<String>, source: &str, profiles: &Profiles) -> Self {
        let entry = |(s, p): (&Subject, &Arc<Profile>)| Entry {
            subject: s.clone(),
            profile: Profile::clone(p),
        };
        Self {
            schema: SCHEMA.to_owned(),
            name: name.to_owned(),
            environment,
            source: source.to_owned(),
            entries: profiles.iter().map(entry).collect(),
        }
    }

    /// # Errors
    /// When the file is missing, of another kind or of a newer version.
    pub fn load(name: &str) -> Result<Self, BaselineError> {
        let path = path_of(name)?;
        let size = fs::metadata(&path).map(|m| m.len());
        match size {
            Ok(size) if size <= LARGEST => {}
            Ok(size) => return Err(foreign(&path, format!("it has {size} bytes"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(BaselineError::Missing { name: name.to_owned(), path });
            }
            Err(source) => return Err(BaselineError::Io { path, source }),
        }
        let bytes =
            fs::read(&path).map_err(|source| BaselineError::Io { path: path.clone(), source })?;
        Self::parse(&path, &bytes)
    }

    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, BaselineError> {
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|e| foreign(path, e.to_string()))?;
        match value.get("schema").and_then(|s| s.as_str()) {
            Some(SCHEMA) => {}
            Some(s) if s.starts_with("claw-ebpf/baseline/") => {
                let found = s.chars().take(64).collect();
                return Err(BaselineError::Version { path: path.to_owned(), found });
            }
            _ => return Err(foreign(path, "its schema is not that of one".to_owned())),
        }
        let baseline: Self =
            serde_json::from_value(value).map_err(|e| foreign(path, e.to_string()))?;
        match baseline.entries.iter().find(|e| !sound(&e.profile)) {
            Some(e) => {
                let process = &e.subject.process;
                Err(foreign(path, format!("the figures of process {process} are out of range")))
            }
            None => Ok(baseline),
        }
    }

    /// # Errors
    /// When the file exists and is not to be replaced, or cannot be written.
    pub fn save(&self, path: &Path, replace: bool) -> Result<(), BaselineError> {
        if !replace && path.exists() {
            return Err(BaselineError::Exists(path.to_owned()));
        }
        let fail = |source| BaselineError::Io { path: path.to_owned(), source };
        if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(fail)?;
        }
        let mut text = serde_json::to_string_pretty(self).map_err(|e| fail(e.into()))?;
        text.push('\n');
        let mut partial = path.to_owned().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let written = fs::write(&partial, text).and_then(|()| {
            fs::File::open(&partial)?.sync_all()?;
            fs::rename(&partial, path)
        });
        written.map_err(|e| {
            let _ = fs::remove_file(&partial);
            fail(e)
        })
    }

    pub fn profiles(&self) -> Profiles {
        let entry = |e: &Entry| (e.subject.clone(), Arc::new(e.profile.clone()));
        self.entries.iter().map(entry).collect::<BTreeMap<_, _>>()
    }
}

fn foreign(path: &Path, why: String) -> BaselineError {
    BaselineError::Foreign { path: path.to_owned(), why }
}

fn sound(p: &Profile) -> bool {
    let fine = |v: &f64| v.is_finite() && *v >= 0.0;
    fine(&p.level)
        && p.beta.iter().chain(&p.load).chain(&p.rose).chain(&p.fell).all(fine)
        && fine(&p.seconds)
        && p.brief.iter().all(|(n, rose)| {
            [n.square, n.fell].into_iter().map(f64::from).chain([*rose]).all(|v| fine(&v))
        })
        && p.warm_up.iter().all(|(_, v)| v.is_finite())
        && p.warm_up.windows(2).all(|w| w[0].0 < w[1].0)
}
