//! The rolling baselines of this machine: a redb file that every `watch` reads
//! when it begins and writes while it runs.
//!
//! `rolling.redb` in the state directory has two tables:
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `schema` | `claw-ebpf/rolling/1` |
//! | `hours` | hour since the Unix epoch, process name, tenant | sum of ln(coefficient) · s; seconds seen |
//!
//! A save is one transaction, synced before it returns: after kill -9 at any
//! moment the file holds all of it or nothing. It also removes hours that are
//! older than 48 and, beyond [`MOST_ROWS`], the oldest: with names of at most
//! [`LONGEST_NAME`] bytes this bounds the file. Whoever has it open holds its
//! lock; a second agent is told so and keeps its own.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    TableDefinition, TableError,
};

use crate::detect::rolling::{Hour, KEPT_H};

pub const SCHEMA: &str = "claw-ebpf/rolling/1";
/// Rows that are kept: 48 hours of 2,000 tenants and more.
pub const MOST_ROWS: u64 = 100_000;
/// Longest name of a process or tenant, bytes; what is longer is not kept.
pub const LONGEST_NAME: usize = 256;
/// Largest file that is opened, bytes: far beyond what the rows can take.
const LARGEST: u64 = 1 << 30;
/// A file half made is left over when nothing touched it for so long and nobody
/// holds its lock.
const LEFT_OVER: Duration = Duration::from_secs(60);
/// Of redb's pages in memory, bytes.
const CACHE: usize = 1 << 20;

const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
type Key = (u64, &'static str, &'static str);
const HOURS: TableDefinition<'_, Key, (f64, f64)> = TableDefinition::new("hours");

/// Whose hour, and which.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HourOf {
    pub hour: u64,
    pub process: String,
    pub tenant: String,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot keep rolling baselines in {path}: {why}; give --state DIR, or --state none")]
    Io { path: PathBuf, why: String },
    #[error(
        "the rolling baselines in {path} are damaged ({why}): remove the file to begin anew, or \
         give --state none"
    )]
    Damaged { path: PathBuf, why: String },
    #[error(
        "the rolling baselines in {path} are of version {found}, this program reads {SCHEMA}: use \
         the claw-ebpf that made them, or another --state DIR"
    )]
    Version { path: PathBuf, found: String },
    #[error("another claw-ebpf has {0} open")]
    InUse(PathBuf),
}

#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    database: Database,
}

impl Store {
    /// Open the store in `folder`, made where it is missing.
    ///
    /// # Errors
    /// When it is damaged, of another version, in use, or cannot be written.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join("rolling.redb");
        let io = |e: std::io::Error| StoreError::Io { path: path.clone(), why: e.to_string() };
        fs::create_dir_all(folder).map_err(io)?;
        remove_left_overs(folder);
        match fs::metadata(&path) {
            Ok(m) if m.len() > LARGEST => {
                let why = format!("it has {} bytes", m.len());
                Err(StoreError::Damaged { path, why })
            }
            // A file of nothing would be taken for a new one.
            Ok(m) if m.len() == 0 => {
                Err(StoreError::Damaged { path, why: "it is empty".to_owned() })
            }
            Ok(_) => {
                let database = quietly(|| open_whole(&path)).unwrap_or_else(|| {
                    let why = "its pages make no sense".to_owned();
                    Err(StoreError::Damaged { path: path.clone(), why })
                })?;
                let store = Self { path, database };
                store.check_version()?;
                Ok(store)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Self::create(path),
            Err(e) => Err(io(e)),
        }
    }

    /// A new file gets its name when it is whole.
    fn create(path: PathBuf) -> Result<Self, StoreError> {
        let partial = path.with_extension(format!("{}.partial", std::process::id()));
        let io = |e: std::io::Error| StoreError::Io { path: path.clone(), why: e.to_string() };
        let made = Database::builder()
            .set_cache_size(CACHE)
            .create(&partial)
            .map_err(|e| of_open(&path, e))
            .and_then(|database| {
                let fresh = Self { path: path.clone(), database };
                let write = fresh.database.begin_write().map_err(|e| fresh.failed(e.into()))?;
                let mut meta = write.open_table(META).map_err(|e| fresh.failed(e.into()))?;
                meta.insert("schema", SCHEMA).map_err(|e| fresh.failed(e.into()))?;
                drop(meta);
                write.open_table(HOURS).map_err(|e| fresh.failed(e.into()))?;
                write.commit().map_err(|e| fresh.failed(e.into()))
            })
            // Where another was quicker, that one stays.
            .and_then(|()| match fs::hard_link(&partial, &path) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(io(e)),
                _ => Ok(()),
            });
        let _ = fs::remove_file(&partial);
        made?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::File::open(folder).and_then(|f| f.sync_all()).map_err(io)?;
        Self::open(folder)
    }

    fn check_version(&self) -> Result<(), StoreError> {
        let read = self.database.begin_read().map_err(|e| self.failed(e.into()))?;
        let foreign = |why: &str| StoreError::Damaged { path: self.path.clone(), why: why.into() };
        let meta = match read.open_table(META) {
            Ok(meta) => meta,
            Err(TableError::TableDoesNotExist(_)) => {
                return Err(foreign("it is not one of claw-ebpf"));
            }
            Err(e) => return Err(self.failed(e.into())),
        };
        let schema = meta.get("schema").map_err(|e| self.failed(e.into()))?;
        match schema.as_ref().map(|s| s.value()) {
            Some(SCHEMA) => Ok(()),
            Some(other) => Err(StoreError::Version {
                path: self.path.clone(),
                found: crate::report::clean::clean(&other.chars().take(64).collect::<String>()),
            }),
            None => Err(foreign("its version is missing")),
        }
    }

    /// All hours that are not too old at `now` (hours since the Unix epoch).
    ///
    /// # Errors
    /// When a row cannot be read or makes no sense.
    pub fn load(&self, now: u64) -> Result<Vec<(HourOf, Hour)>, StoreError> {
        let read = self.database.begin_read().map_err(|e| self.failed(e.into()))?;
        let table = read.open_table(HOURS).map_err(|e| self.failed(e.into()))?;
        let mut all = Vec::new();
        for row in table.iter().map_err(|e| self.failed(e.into()))? {
            let (key, value) = row.map_err(|e| self.failed(e.into()))?;
            let (hour, process, tenant) = key.value();
            let (log_sum, seconds) = value.value();
            let seen = Hour { log_sum, seconds };
            if !seen.is_sound() {
                let why = "a figure is out of range".to_owned();
                return Err(StoreError::Damaged { path: self.path.clone(), why });
            }
            if now.saturating_sub(hour) < KEPT_H {
                let of = HourOf { hour, process: process.to_owned(), tenant: tenant.to_owned() };
                all.push((of, seen));
            }
        }
        Ok(all)
    }

    /// Keep these hours, all or none, and forget what is too old or too much;
    /// gives how many rows found no room.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, hours: &[(HourOf, Hour)], now: u64) -> Result<u64, StoreError> {
        let write = self.database.begin_write().map_err(|e| self.failed(e.into()))?;
        let mut table = write.open_table(HOURS).map_err(|e| self.failed(e.into()))?;
        let mut dropped = 0;
        for (of, seen) in hours {
            if of.process.len() > LONGEST_NAME || of.tenant.len() > LONGEST_NAME {
                dropped += 1;
                continue;
            }
            let key = (of.hour, of.process.as_str(), of.tenant.as_str());
            table.insert(key, (seen.log_sum, seen.seconds)).map_err(|e| self.failed(e.into()))?;
        }
        let oldest = now.saturating_sub(KEPT_H - 1);
        table.retain_in(..(oldest, "", ""), |_, _| false).map_err(|e| self.failed(e.into()))?;
        while table.len().map_err(|e| self.failed(e.into()))? > MOST_ROWS {
            table.pop_first().map_err(|e| self.failed(e.into()))?;
            dropped += 1;
        }
        drop(table);
        write.commit().map_err(|e| self.failed(e.into()))?;
        Ok(dropped)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, e: redb::Error) -> StoreError {
        of(&self.path, e)
    }
}

/// What a kill left of stores that were being made: `rolling.PID.partial`. One
/// that cannot be removed is in nobody's way.
fn remove_left_overs(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let of_store = name
            .to_str()
            .and_then(|n| n.strip_prefix("rolling.")?.strip_suffix(".partial"))
            .is_some_and(|pid| pid.parse::<u32>().is_ok());
        // Not followed: a link is no store.
        let is_file = entry.metadata().is_ok_and(|m| m.is_file());
        if of_store && is_file && is_left_over(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn is_left_over(path: &Path) -> bool {
    let Ok(file) = fs::File::open(path) else { return false };
    let age = file.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
    age.is_some_and(|age| age >= LEFT_OVER) && file.try_lock().is_ok()
}

fn open_whole(path: &Path) -> Result<Database, StoreError> {
    let opened = Database::builder().set_cache_size(CACHE).open(path);
    let mut database = opened.map_err(|e| of_open(path, e))?;
    if database.check_integrity().map_err(|e| of_open(path, e))? {
        return Ok(database);
    }
    let why = "its checksums do not match".to_owned();
    Err(StoreError::Damaged { path: path.to_owned(), why })
}

/// redb panics over some damage that it meets before it has looked at the
/// checksums: `None` then, without the words of the panic.
fn quietly<T>(f: impl FnOnce() -> T) -> Option<T> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
    std::panic::set_hook(hook);
    result.ok()
}

fn of_open(path: &Path, e: DatabaseError) -> StoreError {
    match e {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.to_owned()),
        DatabaseError::UpgradeRequired(v) => {
            StoreError::Version { path: path.to_owned(), found: format!("(redb format {v})") }
        }
        other => of(path, other.into()),
    }
}

/// What redb could not read is damage, what the system refused is not.
fn of(path: &Path, e: redb::Error) -> StoreError {
    let why = e.to_string();
    match e {
        // Not a redb file, or cut.
        redb::Error::Io(e)
            if !matches!(
                e.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            StoreError::Io { path: path.to_owned(), why }
        }
        _ => StoreError::Damaged { path: path.to_owned(), why },
    }
}
