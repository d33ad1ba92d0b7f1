//! `--allow-remote-exec`: a script that the target runs itself (PEP 768, 3.14
//! on), and only on request. The other place that writes into a target.
//!
//! The path of a script is written into the main thread's state, with a flag
//! that it is pending and a bit that makes the interpreter look, as
//! `sys.remote_exec` does (`Modules/_remote_debugging`, `Python/remote_debug.h`).
//! The main thread's state lives as long as the interpreter, so that no memory
//! is written that has become another's. What is asked for and not taken up in
//! time is taken back.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{FileExt, PermissionsExt},
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant},
};

use super::{live::LivePython, pool::u64_at, threads::Offsets};
use crate::target::memory::Memory;

/// `_PY_EVAL_PLEASE_STOP_BIT` (`pycore_ceval.h`).
const PLEASE_STOP: u8 = 1 << 5;
/// Between two looks at whether it is done.
const LOOK: Duration = Duration::from_millis(2);
/// Until it has to have begun: a process that waits runs nothing.
const BEGIN: Duration = Duration::from_millis(500);
/// Longest that a garbage collection which was asked for may take.
pub const LONGEST_COLLECTION: Duration = Duration::from_secs(30);
/// Longest path, bytes, that is believed of a target.
const MOST_PATH: u64 = 4096;
/// `_Py_DebugOffsets.interpreter_state.threads_main` (3.14, 3.15).
const THREADS_MAIN: usize = 80;
/// Bytes of `_Py_DebugOffsets` that are read.
const DEBUG_OFFSETS: usize = 896;
/// Longest answer that is read, bytes.
const MOST_ANSWER: u64 = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    #[error("CPython {0} runs no scripts on request: that is of 3.14 and later (PEP 768)")]
    Version(super::binary::Version),
    #[error(
        "the process forbids it (PYTHON_DISABLE_REMOTE_DEBUG, -X disable-remote-debug, or a build \
         without remote debugging)"
    )]
    Forbidden,
    #[error("where this build of CPython takes requests is not known")]
    Unknown,
    #[error("another request is pending in it")]
    Busy,
    #[error(
        "its main thread ran no Python code for {0:?}: the request was taken back, nothing was run"
    )]
    Idle(Duration),
    #[error("the script was begun and did not end within {0:?}")]
    Unfinished(Duration),
    #[error("the script failed: {0}")]
    Failed(String),
    #[error("cannot {what}: {source}")]
    Io { what: &'static str, source: io::Error },
}

/// Where requests are written, absolute addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Door {
    eval_breaker: u64,
    pending: u64,
    path: u64,
    /// Room for the path with its end, bytes.
    path_room: u64,
}

impl Door {
    /// Of the main thread of the first interpreter.
    ///
    /// # Errors
    /// When it is not known, or shut.
    pub fn find<M: Memory>(memory: &M, runtime: u64, minor: u8) -> Result<Self, RemoteError> {
        let support = match minor {
            14 => 712,
            15 => 840,
            _ => return Err(RemoteError::Unknown),
        };
        let lists = Offsets::of(minor, memory, runtime).ok_or(RemoteError::Unknown)?;
        let mut b = [0u8; DEBUG_OFFSETS];
        memory.read(runtime, &mut b).map_err(|_| RemoteError::Unknown)?;
        let at = |offset: usize| {
            Some(u64_at(&b, offset)).filter(|v| *v < 1 << 20).ok_or(RemoteError::Unknown)
        };
        let word = |base: u64, offset: u64| {
            let at = base.checked_add(offset).ok_or(RemoteError::Unknown)?;
            memory.u64_at(at).map_err(|_| RemoteError::Unknown)
        };
        // `debugger_support`: eval_breaker, remote_debugger_support,
        // remote_debugging_enabled, debugger_pending_call,
        // debugger_script_path, debugger_script_path_size.
        let (eval_breaker, own) = (at(support)?, at(support + 8)?);
        let (enabled, pending, path) = (at(support + 16)?, at(support + 24)?, at(support + 32)?);
        let path_room = at(support + 40)?;
        if path_room == 0 || path_room > MOST_PATH {
            return Err(RemoteError::Unknown);
        }
        let interpreter = word(runtime, lists.interpreters)?;
        if word(interpreter, enabled)? as u32 == 0 {
            return Err(RemoteError::Forbidden);
        }
        let thread = word(interpreter, at(THREADS_MAIN)?)?;
        let in_thread = |offset: u64| thread.checked_add(offset).ok_or(RemoteError::Unknown);
        if thread == 0 {
            return Err(RemoteError::Unknown);
        }
        Ok(Self {
            eval_breaker: in_thread(eval_breaker)?,
            pending: in_thread(own + pending)?,
            path: in_thread(own + path)?,
            path_room,
        })
    }
}

/// What the target ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// What the script wrote.
    pub answer: String,
    pub took: Duration,
}

impl LivePython {
    /// Whether scripts may be run in it.
    ///
    /// # Errors
    /// Why not.
    pub fn door(&self) -> Result<Door, RemoteError> {
        if self.python.version.minor < 14 {
            return Err(RemoteError::Version(self.python.version));
        }
        Door::find(self.objects().memory, self.python.runtime, self.python.version.minor)
    }

    /// Run a full garbage collection in it; gives how many objects it found
    /// unreachable.
    ///
    /// # Errors
    /// When it was not run, or not to its end.
    pub fn collect(&self, within: Duration) -> Result<(u64, Duration), RemoteError> {
        let ran = self.run("import gc\nanswer = str(gc.collect())", within)?;
        let found = ran.answer.trim().parse();
        found.map(|n| (n, ran.took)).map_err(|_| RemoteError::Failed(ran.answer.clone()))
    }

    /// Run a script in it that leaves a `str` in `answer`.
    ///
    /// It has to begin soon, and to end within that time.
    ///
    /// # Errors
    /// When it was not run, or not to its end.
    pub fn run(&self, script: &str, within: Duration) -> Result<Ran, RemoteError> {
        let door = self.door()?;
        let pid = self.process.pid;
        let answer = Shared::new(pid, "")?;
        // The answer's first character says that all of it is there.
        let whole = format!(
            "def claw():\n    scope = {{}}\n    try:\n        exec({script:?}, scope)\n        \
             said = '+' + scope['answer']\n    except BaseException as e:\n        said = '-' + \
             repr(e)\n    try:\n        f = open({:?}, 'r+', encoding='utf-8')\n    \
             except OSError:\n        return\n    with f:\n        f.write(' ' + said[1:])\n        \
             f.flush()\n        f.seek(0)\n        f.write(said[0])\nclaw()\n",
            answer.within
        );
        let script = Shared::new(pid, &whole)?;
        let writer = Writer::open(pid)?;
        let memory = self.objects().memory;
        let pending = || memory.u64_at(door.pending).map(|w| w as u32);
        let read = |e: crate::target::memory::MemoryError| RemoteError::Io {
            what: "read the process's memory",
            source: e.source,
        };
        if pending().map_err(read)? != 0 {
            return Err(RemoteError::Busy);
        }
        let mut path = script.within.clone().into_bytes();
        path.push(0);
        if path.len() as u64 > door.path_room {
            return Err(RemoteError::Unknown);
        }
        let began = Instant::now();
        writer.write(door.path, &path)?;
        writer.write(door.pending, &1u32.to_le_bytes())?;
        // The low byte alone: the bits above it are a counter of the process's.
        let bits = memory.u64_at(door.eval_breaker).map_err(read)? as u8;
        writer.write(door.eval_breaker, &[bits | PLEASE_STOP])?;
        loop {
            let said = answer.read()?;
            match said.as_bytes().first() {
                Some(b'+') => {
                    return Ok(Ran { answer: said[1..].to_owned(), took: began.elapsed() });
                }
                Some(b'-') => return Err(RemoteError::Failed(said[1..].to_owned())),
                _ => {}
            }
            if began.elapsed() >= within {
                return Err(RemoteError::Unfinished(within));
            }
            if began.elapsed() >= BEGIN && pending().map_err(read)? != 0 {
                writer.write(door.pending, &0u32.to_le_bytes())?;
                return Err(RemoteError::Idle(BEGIN));
            }
            sleep(LOOK);
        }
    }
}

struct Writer(fs::File);

impl Writer {
    fn open(pid: u32) -> Result<Self, RemoteError> {
        let opened = OpenOptions::new().write(true).open(format!("/proc/{pid}/mem"));
        let what = "write into the process's memory";
        opened.map(Self).map_err(|source| RemoteError::Io { what, source })
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), RemoteError> {
        let what = "write into the process's memory";
        self.0.write_all_at(bytes, address).map_err(|source| RemoteError::Io { what, source })
    }
}

/// A file that the target sees as well; removed when dropped.
struct Shared {
    file: tempfile::NamedTempFile,
    /// Its path, as the target names it.
    within: String,
}

impl Shared {
    fn new(pid: u32, content: &str) -> Result<Self, RemoteError> {
        let at = |source| RemoteError::Io { what: "make a file in the process's /tmp", source };
        let dir = PathBuf::from(format!("/proc/{pid}/root/tmp"));
        // A link would lead out of its file system into the agent's.
        if !fs::symlink_metadata(&dir).map_err(at)?.is_dir() {
            return Err(at(io::ErrorKind::NotADirectory.into()));
        }
        let mut file = tempfile::Builder::new()
            .prefix("claw-ebpf-")
            .suffix(".py")
            .tempfile_in(&dir)
            .map_err(at)?;
        io::Write::write_all(&mut file, content.as_bytes()).map_err(at)?;
        // The process runs as another user.
        let mode = if content.is_empty() { 0o666 } else { 0o644 };
        file.as_file().set_permissions(fs::Permissions::from_mode(mode)).map_err(at)?;
        let name = file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { file, within: format!("/tmp/{name}") })
    }

    /// What the target has written there.
    fn read(&self) -> Result<String, RemoteError> {
        let at = |source| RemoteError::Io { what: "read the script's answer", source };
        let length = self.file.as_file().metadata().map_err(at)?.len().min(MOST_ANSWER);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        let n = self.file.as_file().read_at(&mut bytes, 0).map_err(at)?;
        bytes.truncate(n);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{
        cpython::running::Running,
        memory::{BytesMemory, MemoryError},
    };

    const RUNTIME: u64 = 0x10_0000;
    const INTERPRETER: u64 = 0x20_0000;
    const THREAD: u64 = 0x30_0000;

    struct Parts(Vec<BytesMemory>);

    impl Memory for Parts {
        fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
            let mut last = self.0[0].read(address, buf);
            for part in &self.0[1..] {
                if last.is_ok() {
                    break;
                }
                last = part.read(address, buf);
            }
            last
        }
    }

    /// A 3.14 whose `remote_debug` is `enabled`.
    fn process(enabled: u64, path_room: u64) -> Parts {
        let words = |base: u64, length: usize, words: &[(usize, u64)]| {
            let mut bytes = vec![0u8; length];
            for (at, value) in words {
                bytes[*at..*at + 8].copy_from_slice(&value.to_le_bytes());
            }
            BytesMemory { base, bytes }
        };
        let r = Running::of(14).unwrap();
        let frame = [r.f_previous, r.f_code, r.f_instruction, r.f_locals, r.f_owner.unwrap()];
        let mut offsets = vec![
            (0, u64::from_le_bytes(*b"xdebugpy")),
            (40, 900),
            (64, 16),
            (72, 24),
            (80, 32),
            (88, 40),
            (192, 8),
            (200, r.ts_interp),
            (208, r.ts_frame.into()),
            (656, 192),
            (712, 24),
            (720, 304),
            (728, 48),
            (736, 0),
            (744, 4),
            (752, path_room),
            (900, INTERPRETER),
        ];
        offsets.extend(frame.iter().enumerate().map(|(i, o)| (256 + i * 8, u64::from(*o))));
        Parts(vec![
            words(RUNTIME, 1024, &offsets),
            words(INTERPRETER, 256, &[(32, THREAD), (48, enabled)]),
        ])
    }

    #[test]
    fn the_door_is_that_of_the_main_thread() {
        let door = Door::find(&process(1, 512), RUNTIME, 14).unwrap();
        let want = Door {
            eval_breaker: THREAD + 24,
            pending: THREAD + 304,
            path: THREAD + 308,
            path_room: 512,
        };
        assert_eq!(door, want);
    }

    #[test]
    fn it_may_be_shut_or_nonsense() {
        let of = |memory: &Parts, minor| Door::find(memory, RUNTIME, minor).unwrap_err();
        assert!(matches!(of(&process(0, 512), 14), RemoteError::Forbidden));
        // The upper half of the word is another field.
        assert!(matches!(of(&process(7 << 32, 512), 14), RemoteError::Forbidden));
        for room in [0, 1 << 19, u64::MAX] {
            assert!(matches!(of(&process(1, room), 14), RemoteError::Unknown));
        }
        assert!(matches!(of(&process(1, 512), 13), RemoteError::Unknown));
        assert!(matches!(of(&process(1, 512), 15), RemoteError::Unknown), "other offsets");
        let empty = Parts(vec![BytesMemory { base: 0, bytes: Vec::new() }]);
        assert!(matches!(of(&empty, 14), RemoteError::Unknown));
    }
}
