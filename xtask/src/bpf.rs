//! `cargo xtask bpf build|verify`: the BPF objects that the agent embeds.
//!
//! They are committed, so that building the agent needs only stable Rust, and
//! rebuilt bit for bit here: paths are remapped, debug info is stripped after
//! BTF was made from it. The compiler is Debian's `rustc-web` (it ships
//! `rust-src` and matches an LLVM that `bpf-linker` can be built with), or what
//! `CLAW_BPF_RUSTC`, `CLAW_BPF_CARGO` and `CLAW_BPF_LLVM` name.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use sha2::{Digest, Sha256};

use crate::command::{apt_install, output, status};

const ARCHES: [&str; 2] = ["x86_64", "aarch64"];
const LINKER_VERSION: &str = "0.13.0";
const DEBIAN_PACKAGES: [&str; 6] =
    ["rustc-web", "cargo-web", "rust-web-src", "llvm-22-dev", "libzstd-dev", "zlib1g-dev"];
const MANIFEST: &str = "manifest.json";

#[derive(Subcommand, Clone, Copy)]
pub enum Bpf {
    /// Build the objects and write them to claw-userspace/bpf
    Build,
    /// Build them aside and compare with what is committed
    Verify,
}

pub fn run(root: &Path, verb: Bpf) -> Result<()> {
    let tools = Tools::find_or_install(root)?;
    let committed = root.join("claw-userspace/bpf");
    let fresh = root.join("target/bpf");
    fs::create_dir_all(&fresh)?;
    let mut hashes = serde_json::Map::new();
    for arch in ARCHES {
        let object = tools.build(root, arch)?;
        let name = format!("claw-{arch}.o");
        let bytes = tools.strip(&object, &fresh.join(&name))?;
        hashes.insert(name, hex(&Sha256::digest(&bytes)).into());
    }
    let manifest = serde_json::json!({
        "rustc": tools.rustc_version,
        "bpf_linker": LINKER_VERSION,
        "sha256": hashes,
    });
    let manifest = serde_json::to_string_pretty(&manifest)? + "\n";
    fs::write(fresh.join(MANIFEST), &manifest)?;
    match verb {
        Bpf::Build => {
            fs::create_dir_all(&committed)?;
            for file in files() {
                fs::copy(fresh.join(&file), committed.join(&file))
                    .with_context(|| format!("cannot write {file}"))?;
            }
            println!("wrote {}:\n{manifest}", committed.display());
        }
        Bpf::Verify => {
            let was = fs::read_to_string(committed.join(MANIFEST)).unwrap_or_default();
            let built_with = serde_json::from_str::<serde_json::Value>(&was)
                .ok()
                .and_then(|m| Some(m.get("rustc")?.as_str()?.to_owned()));
            if let Some(v) = built_with.filter(|v| *v != tools.rustc_version) {
                bail!(
                    "the committed objects were built with {v}, here is {}: \
                     run `cargo xtask bpf build` and commit the result",
                    tools.rustc_version
                );
            }
            for file in files() {
                if fs::read(fresh.join(&file))?
                    != fs::read(committed.join(&file)).unwrap_or_default()
                {
                    bail!(
                        "claw-userspace/bpf/{file} is not what claw-ebpf/ builds: \
                         run `cargo xtask bpf build` and commit the result"
                    );
                }
            }
            println!("committed BPF objects are what the source builds");
        }
    }
    Ok(())
}

fn files() -> impl Iterator<Item = String> {
    ARCHES.iter().map(|a| format!("claw-{a}.o")).chain([MANIFEST.to_owned()])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A mangled name (RFC 2603) without the first crate's disambiguator; `None`
/// where it has none.
fn without_hash(name: &str) -> Option<String> {
    let (before, rest) = name.strip_prefix("_R").and_then(|_| name.split_once("Cs"))?;
    let (hash, after) = rest.split_once('_')?;
    hash.bytes().all(|b| b.is_ascii_alphanumeric()).then(|| format!("{before}C{after}"))
}

struct Tools {
    rustc: PathBuf,
    cargo: PathBuf,
    llvm: PathBuf,
    linker_dir: PathBuf,
    rustc_version: String,
}

impl Tools {
    fn find_or_install(root: &Path) -> Result<Self> {
        let path = |name: &str, default: &str| {
            PathBuf::from(std::env::var_os(name).unwrap_or_else(|| default.into()))
        };
        let rustc = path("CLAW_BPF_RUSTC", "/usr/bin/rustc");
        let cargo = path("CLAW_BPF_CARGO", "/usr/bin/cargo");
        let llvm = path("CLAW_BPF_LLVM", "/usr/lib/llvm-22");
        let have_src = output(Command::new(&rustc).args(["--print", "sysroot"]))
            .is_ok_and(|s| Path::new(s.trim()).join("lib/rustlib/src/rust/library").exists());
        if !(have_src && cargo.exists() && llvm.join("bin/llvm-config").exists()) {
            apt_install(
                &DEBIAN_PACKAGES,
                "building the BPF object (or set CLAW_BPF_RUSTC, CLAW_BPF_CARGO and \
                 CLAW_BPF_LLVM to a compiler with rust-src and the LLVM it was built with)",
            )?;
        }
        let linker_root = root.join("target/bpf-linker");
        let linker_dir = linker_root.join("bin");
        let wanted = format!("bpf-linker {LINKER_VERSION}");
        let present = output(Command::new(linker_dir.join("bpf-linker")).arg("--version"))
            .is_ok_and(|v| v.trim() == wanted);
        if !present {
            println!("installing {wanted} into {}", linker_root.display());
            status(
                Command::new("cargo")
                    .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"])
                    .args(["--no-default-features", "--features", "llvm-22", "--force", "--root"])
                    .arg(&linker_root)
                    .env("LLVM_PREFIX", &llvm),
            )?;
        }
        let rustc_version = output(Command::new(&rustc).arg("--version"))?.trim().to_owned();
        Ok(Self { rustc, cargo, llvm, linker_dir, rustc_version })
    }

    /// Compile for one architecture; returns the linked object.
    fn build(&self, root: &Path, arch: &str) -> Result<PathBuf> {
        let target = root.join("target/bpf-build").join(arch);
        let mut path = OsString::from(&self.linker_dir);
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let cargo_home = std::env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
        let mut flags = vec![
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            format!("--cfg=bpf_target_arch=\"{arch}\""),
            format!("--remap-path-prefix={}=/claw", root.display()),
        ];
        if let Some(home) = cargo_home {
            flags.push(format!("--remap-path-prefix={}=/cargo", home.display()));
        }
        status(
            Command::new(&self.cargo)
                .args(["build", "--quiet", "--release", "--locked", "-Zbuild-std=core"])
                .args(["--target", "bpfel-unknown-none", "--target-dir"])
                .arg(&target)
                .current_dir(root.join("claw-ebpf"))
                .env("PATH", path)
                .env("RUSTC", &self.rustc)
                // build-std is unstable; this keeps the compiler a stable one.
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
                .env_remove("RUSTUP_TOOLCHAIN")
                .env_remove("RUSTFLAGS"),
        )?;
        Ok(target.join("bpfel-unknown-none/release/claw"))
    }

    /// Drop DWARF, keep BTF. A function that was not inlined is named with the
    /// hash of its crate, which cargo makes from the path of `claw-common` too:
    /// such names lose it.
    fn strip(&self, object: &Path, out: &Path) -> Result<Vec<u8>> {
        let names = output(
            Command::new(self.llvm.join("bin/llvm-nm")).arg("--format=just-symbols").arg(object),
        )?;
        let renamed = names
            .lines()
            .filter_map(|name| Some(format!("--redefine-sym={name}={}", without_hash(name)?)));
        status(
            Command::new(self.llvm.join("bin/llvm-objcopy"))
                .arg("--strip-debug")
                .args(renamed)
                .arg(object)
                .arg(out),
        )?;
        fs::read(out).with_context(|| format!("cannot read {}", out.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::without_hash;

    #[test]
    fn names_lose_the_hash_of_their_crate() {
        let name = "_RNvNtCsdgSRGajWd1y_4claw8pytenant4text";
        assert_eq!(without_hash(name).as_deref(), Some("_RNvNtC4claw8pytenant4text"));
        assert_eq!(without_hash("go_mallocgc"), None);
        assert_eq!(without_hash("_RNvC4claw4text"), None);
    }
}
