//! The newest CPythons for the tests, out of Debian's unstable packages, beside
//! the system's own: nothing is installed. What is not to be had is left out.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::command::{is_root, output, status};

const MINORS: [u32; 2] = [14, 15];
/// What they run with: newer than the system's.
const LIBRARIES: [&str; 6] = ["libc6", "libexpat1", "libffi8", "libgcc-s1", "libzstd1", "zlib1g"];
/// Where those lie in their packages.
const LIB: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Have them in `target/pythons/3.N/python`.
pub fn fetch(root: &Path) {
    let all = root.join("target/pythons");
    let missing: Vec<u32> = MINORS.into_iter().filter(|m| !runs(&program(&all, *m))).collect();
    if missing.is_empty() {
        return;
    }
    let apt = match Apt::new(&all.join("apt")) {
        Ok(apt) => apt,
        Err(e) => return println!("skipped: Python 3.14 and 3.15: {e:#}"),
    };
    for minor in missing {
        if let Err(e) = one(&apt, &all, minor) {
            println!("skipped: Python 3.{minor}: {e:#}");
        }
    }
}

fn program(all: &Path, minor: u32) -> PathBuf {
    all.join(format!("3.{minor}/python"))
}

fn runs(python: &Path) -> bool {
    python.is_file() && output(Command::new(python).args(["-c", "import asyncio, json"])).is_ok()
}

fn one(apt: &Apt, all: &Path, minor: u32) -> Result<()> {
    let dir = all.join(format!("3.{minor}"));
    let python = format!("python3.{minor}");
    let mut packages: Vec<String> = LIBRARIES.map(str::to_owned).to_vec();
    packages.push(format!("{python}-minimal"));
    packages.extend(["minimal", "stdlib", "dev"].map(|part| format!("lib{python}-{part}")));
    let _ = fs::remove_dir_all(&dir);
    let debs = dir.join("debs");
    fs::create_dir_all(&debs)?;
    status(apt.command("apt-get").args(["download", "-qq"]).args(&packages).current_dir(&debs))?;
    for deb in fs::read_dir(&debs)? {
        status(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(&dir))?;
    }
    let binary = dir.join("usr/bin").join(&python);
    let bytes = with_loader(fs::read(&binary)?, &dir.join(LIB).join(LOADER))?;
    fs::write(&binary, bytes)?;
    let script = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH={} exec {} \"$@\"\n",
        dir.join(LIB).display(),
        binary.display()
    );
    let started = program(all, minor);
    fs::write(&started, script)?;
    status(Command::new("chmod").arg("+x").arg(&started))?;
    if !runs(&started) {
        bail!("{} does not run", started.display());
    }
    Ok(())
}

/// The same executable, started by another dynamic loader: the path is appended,
/// and its `PT_INTERP` points there. Nothing that is mapped changes.
fn with_loader(mut elf: Vec<u8>, loader: &Path) -> Result<Vec<u8>> {
    const PT_INTERP: [u8; 4] = 3u32.to_le_bytes();
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let mut word = [0; 8];
        word.get_mut(..bytes)?.copy_from_slice(elf.get(at..at + bytes)?);
        usize::try_from(u64::from_le_bytes(word)).ok()
    };
    // `e_phoff`, `e_phentsize`, `e_phnum` of a 64-bit file.
    let (table, each, count) = (number(32, 8), number(54, 2), number(56, 2));
    let (Some(table), Some(each), Some(count)) = (table, each, count) else { bail!("no ELF file") };
    let header = (0..count)
        .map(|i| table + i * each)
        .find(|at| elf.get(*at..at + 4) == Some(&PT_INTERP[..]))
        .context("it has no dynamic loader")?;
    let path = [loader.to_str().context("a path that is no text")?.as_bytes(), b"\0"].concat();
    let (offset, size) = ((elf.len() as u64).to_le_bytes(), (path.len() as u64).to_le_bytes());
    // `p_offset`, `p_filesz`.
    for (at, value) in [(8, offset), (32, size)] {
        elf.get_mut(header + at..header + at + 8).context("cut short")?.copy_from_slice(&value);
    }
    elf.extend(path);
    Ok(elf)
}

/// apt with lists of its own: those of Debian's unstable distribution, from
/// where this machine gets its packages.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(dir: &Path) -> Result<Self> {
        const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let site = site()?;
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let signed = if Path::new(KEYRING).is_file() {
            format!(" [signed-by={KEYRING}]")
        } else {
            String::new()
        };
        fs::write(dir.join("sources.list"), format!("deb{signed} {site} sid main\n"))?;
        let apt = Self { dir: dir.to_owned() };
        status(apt.command("apt-get").args(["update", "-qq"]))?;
        Ok(apt)
    }

    fn command(&self, name: &str) -> Command {
        let mut c = Command::new(name);
        let at = |option: &str, path: &str| format!("{option}={}", self.dir.join(path).display());
        let options = [
            at("Dir::State", "state"),
            at("Dir::Cache", "cache"),
            at("Dir::Etc::sourcelist", "sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Dir::State::status=/dev/null".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=2".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "APT::Sandbox::User=".to_owned() + if is_root() { "root" } else { "" },
        ];
        c.args(options.iter().flat_map(|o| ["-o", o]));
        c
    }
}

/// Where apt gets Debian's packages.
fn site() -> Result<String> {
    let known = || {
        let targets = output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(ORIGIN) $(COMPONENT) $(RELEASE) $(SITE)",
            "Created-By: Packages",
        ]))?;
        let main = targets.lines().find_map(|line| {
            let rest = line.strip_prefix("Debian main ")?;
            rest.split_once(' ').filter(|(release, _)| !release.contains("security"))
        });
        main.map(|(_, site)| site.to_owned()).context("apt gets no packages from Debian")
    };
    known().or_else(|e| {
        if !is_root() {
            return Err(e);
        }
        status(Command::new("apt-get").args(["update", "-qq"]))?;
        known()
    })
}
