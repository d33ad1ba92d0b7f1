//! The programs: what Go expects of each, and how they are built to stay alive.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use regex::Regex;

use crate::command::status;

const FOLDERS: [&str; 2] = ["testgoroutineleakprofile", "testgoroutineleakprofile/goker"];
/// Rounds that a program's own outermost loop is left, which it has to make an
/// unlikely order of events likely: here it runs again every second as well.
const ROUNDS: &str = "10";

/// What Go expects of one program.
pub struct Program {
    pub name: String,
    /// Which of the folders it is in.
    pub folder: usize,
    pub patterns: Vec<Regex>,
    /// It does not leak every time.
    pub flaky: bool,
}

/// From the test's own source: `makeTest("Name", pattern, …)`.
pub fn expectations(runtime: &Path) -> Result<Vec<Program>> {
    let programs = parse(&fs::read_to_string(runtime.join("goroutineleakprofile_test.go"))?)?;
    ensure!(programs.len() > 50, "the test's source is not as it was");
    Ok(programs)
}

fn parse(text: &str) -> Result<Vec<Program>> {
    let name = Regex::new(r#"^\s*make(Flaky)?Test\("(\w+)""#)?;
    let pattern = Regex::new("^\\s*`([^`]+)`[,)]")?;
    let mut programs: Vec<Program> = Vec::new();
    let mut folder = 0;
    for line in text.lines() {
        folder += usize::from(line.contains("gokerTestCases :="));
        if let Some(c) = name.captures(line) {
            let flaky = c.get(1).is_some();
            programs.push(Program { name: c[2].to_owned(), folder, patterns: Vec::new(), flaky });
        } else if let (Some(c), Some(p)) = (pattern.captures(line), programs.last_mut()) {
            p.patterns.push(Regex::new(&c[1])?);
        }
    }
    Ok(programs)
}

/// Build both folders with one version; gives the executables.
pub fn build(root: &Path, go: &Path, runtime: &Path, version: &str) -> Result<Vec<PathBuf>> {
    let mut built = Vec::new();
    for (i, folder) in FOLDERS.iter().enumerate() {
        let out = root.join(format!("target/leaksuite/{version}-{i}"));
        fs::create_dir_all(&out)?;
        fs::write(out.join("go.mod"), "module leaks\n\ngo 1.22\n")?;
        for entry in fs::read_dir(runtime.join("testdata").join(folder))? {
            let path = entry?.path();
            let Some(name) = path.file_name().filter(|_| path.extension() == Some("go".as_ref()))
            else {
                continue;
            };
            let mut text = kept_alive(&fs::read_to_string(&path)?)?;
            if name == "main.go" {
                text = again_and_again(&text)?;
            }
            fs::write(out.join(name), text)?;
        }
        let program = out.join(format!("leaks-{version}"));
        let mut c = Command::new(go);
        c.args(["build", "-buildvcs=false", "-o"]).arg(&program).arg(".");
        status(c.current_dir(&out).env("GOTOOLCHAIN", version))?;
        built.push(program);
    }
    Ok(built)
}

/// A source file so changed that its program lives on: an exit ends only the
/// goroutine that asks for it, and the profile that would stop the world and
/// prove the leak from inside is another one.
fn kept_alive(text: &str) -> Result<String> {
    let text = text
        .replace(r#"Lookup("goroutineleak")"#, r#"Lookup("threadcreate")"#)
        .replace("os.Exit(0)", "runtime.Goexit()");
    let loops = Regex::new(r"(?m)^(\tfor i := 0; i <=? )\d{3,5}(; i\+\+ \{)$")?;
    Ok(loops.replace_all(&text, format!("${{1}}{ROUNDS}$2")).into_owned())
}

/// `main.go` so changed that it runs the program again every second.
fn again_and_again(text: &str) -> Result<String> {
    const ONCE: &str = "\tf()\n}\n";
    const IMPORT: &str = "import \"os\"";
    ensure!(text.contains(ONCE) && text.contains(IMPORT), "main.go is not as it was");
    Ok(text
        .replace(IMPORT, "import (\n\t\"os\"\n\t\"time\"\n)")
        .replace(ONCE, "\tfor {\n\t\tgo f()\n\t\ttime.Sleep(time.Second)\n\t}\n}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_expects_is_read_from_its_test() {
        let text = "\tmicroTests := []testCase{\n\t\tmakeTest(\"ChanSend\",\n\t\t\t`ChanSend\\.func1\\(.* \\[chan send\\]`,\n\t\t),\n\
                    \t\tmakeTest(\"NoLeakGlobal\"),\n\tgokerTestCases := []testCase{\n\
                    \t\tmakeFlakyTest(\"Etcd1\",\n\t\t\t`run\\(.* \\[select\\]`),\n\
                    \t\t// makeTest(testCase{name: \"Out\"},\n\t\t// \t`no`,\n";
        let programs = parse(text).unwrap();
        let seen: Vec<_> = programs
            .iter()
            .map(|p| (p.name.as_str(), p.folder, p.patterns.len(), p.flaky))
            .collect();
        assert_eq!(
            seen,
            [("ChanSend", 0, 1, false), ("NoLeakGlobal", 0, 0, false), ("Etcd1", 1, 1, true)]
        );
        assert!(programs[0].patterns[0].is_match("ChanSend.func1(...) [chan send]"));
    }

    #[test]
    fn programs_live_on() {
        let main = "import \"os\"\n\tif x {\n\t\tf()\n\t}\n}\n\tf()\n}\n";
        let changed = again_and_again(main).unwrap();
        assert!(changed.contains("\t\tgo f()\n\t\ttime.Sleep"), "{changed}");
        assert!(changed.contains("\tif x {\n\t\tf()\n\t}"), "only the last call: {changed}");
        assert!(again_and_again("package main").is_err());
        let text = "\tfor i := 0; i < 1000; i++ {\n\t\tfor i := 0; i < 1000; i++ {\n\
                    \tfor i := 0; i < 100000; i++ {\nos.Exit(0)\n";
        let changed = kept_alive(text).unwrap();
        assert!(changed.starts_with("\tfor i := 0; i < 10; i++ {\n\t\tfor i := 0; i < 1000;"));
        assert!(changed.contains("i < 100000;") && changed.ends_with("runtime.Goexit()\n"));
    }
}
