//! A process that stands still for a moment, so that its memory can be copied
//! at one point in time.
//!
//! Each thread is seized and interrupted with `ptrace(2)`. That sends no
//! signal, so neither the process nor its parent sees one, and the kernel lets
//! all threads go on by itself when the agent ends, however it ends.

use std::{
    collections::BTreeMap,
    fs, io,
    marker::PhantomData,
    thread::sleep,
    time::{Duration, Instant},
};

use super::process::threads;

/// Between two looks at threads that have not stopped yet.
const LOOK: Duration = Duration::from_micros(200);
/// Rounds in which new threads are looked for: each one finds what threads that
/// were not stopped yet have started.
const MOST_ROUNDS: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    #[error("it cannot be stopped: {0} (another debugger may be attached)")]
    Refused(io::Error),
    #[error("its threads did not all stop within {0:?}")]
    Late(Duration),
    #[error("it ended")]
    Gone,
}

/// All threads of a process stopped. They go on when this is dropped, or when
/// the thread that made it ends.
#[derive(Debug)]
pub struct Paused {
    began: Instant,
    /// Thread id → signal to be delivered when it goes on, once it stands.
    threads: BTreeMap<libc::pid_t, Option<libc::c_int>>,
    /// Only the thread that seized may let go.
    not_send: PhantomData<*const ()>,
}

impl Paused {
    /// Stop process `pid`; gives up after `within`.
    ///
    /// # Errors
    /// When it cannot be stopped; it goes on then.
    pub fn stop(pid: u32, within: Duration) -> Result<Self, PauseError> {
        let mut paused =
            Self { began: Instant::now(), threads: BTreeMap::new(), not_send: PhantomData };
        for _ in 0..MOST_ROUNDS {
            let fresh = paused.seize_new(pid)?;
            paused.wait(within)?;
            if !fresh {
                return if paused.threads.is_empty() { Err(PauseError::Gone) } else { Ok(paused) };
            }
        }
        Err(PauseError::Late(within))
    }

    /// Whether there were threads that were not seized yet.
    fn seize_new(&mut self, pid: u32) -> Result<bool, PauseError> {
        let mut fresh = false;
        for tid in threads(pid).map_err(|_| PauseError::Gone)? {
            let tid = tid.cast_signed();
            if self.threads.contains_key(&tid) {
                continue;
            }
            match request(libc::PTRACE_SEIZE, tid, 0).and_then(|()| {
                fresh = true;
                self.threads.insert(tid, None);
                request(libc::PTRACE_INTERRUPT, tid, 0)
            }) {
                Ok(()) => {}
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                Err(e) => return Err(PauseError::Refused(e)),
            }
        }
        Ok(fresh)
    }

    fn wait(&mut self, within: Duration) -> Result<(), PauseError> {
        loop {
            let running: Vec<libc::pid_t> =
                self.threads.iter().filter(|(_, s)| s.is_none()).map(|(tid, _)| *tid).collect();
            if running.is_empty() {
                return Ok(());
            }
            for tid in running {
                match state(tid) {
                    State::Running => {}
                    State::Stopped(signal) => {
                        self.threads.insert(tid, Some(signal));
                    }
                    State::Ended => {
                        self.threads.remove(&tid);
                    }
                }
            }
            if self.began.elapsed() > within {
                return Err(PauseError::Late(within));
            }
            sleep(LOOK);
        }
    }

    /// Since the first thread was stopped.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Let it go on; gives how long it stood.
    pub fn resume(mut self) -> Duration {
        self.detach();
        self.began.elapsed()
    }

    fn detach(&mut self) {
        for (tid, signal) in std::mem::take(&mut self.threads) {
            // One that has not stopped yet does so in a moment: only then can
            // it be let go of.
            let mut signal = signal;
            let until = Instant::now() + Duration::from_secs(1);
            while signal.is_none() && Instant::now() < until {
                match state(tid) {
                    State::Running => sleep(LOOK),
                    State::Stopped(s) => signal = Some(s),
                    State::Ended => break,
                }
            }
            let _ = request(libc::PTRACE_DETACH, tid, signal.unwrap_or(0));
        }
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.detach();
    }
}

enum State {
    Running,
    /// With a signal that has not been delivered yet, or 0.
    Stopped(libc::c_int),
    Ended,
}

/// What the kernel says of a seized thread. The end of a child of the agent's
/// own is left for who started it.
fn state(tid: libc::pid_t) -> State {
    let peek = libc::WSTOPPED | libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    let Some(seen) = wait(tid, peek) else { return State::Ended };
    match seen.si_code {
        _ if seen.si_signo == 0 => State::Running,
        libc::CLD_STOPPED | libc::CLD_TRAPPED => {
            wait(tid, libc::WSTOPPED | libc::WNOHANG | libc::__WALL);
            // SAFETY: the kernel filled in a child's state, which has a status.
            let status = unsafe { seen.si_status() };
            // A stop that was asked for has an event above its signal.
            State::Stopped(if status >> 8 == 0 { status } else { 0 })
        }
        _ => {
            if !is_own_child(tid) {
                wait(tid, libc::WEXITED | libc::WNOHANG | libc::__WALL);
            }
            State::Ended
        }
    }
}

fn wait(tid: libc::pid_t, options: libc::c_int) -> Option<libc::siginfo_t> {
    // SAFETY: all zeroes are a valid siginfo_t; the kernel writes one there.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let id = libc::id_t::try_from(tid).ok()?;
        (libc::waitid(libc::P_PID, id, &raw mut info, options) == 0).then_some(info)
    }
}

fn is_own_child(tid: libc::pid_t) -> bool {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|v| v.trim().parse::<u32>().ok())
    };
    field("PPid") == Some(std::process::id()) && field("Tgid") == u32::try_from(tid).ok()
}

fn request(what: libc::c_uint, tid: libc::pid_t, data: libc::c_int) -> io::Result<()> {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: these requests take no address, and a signal number or 0 as data.
    let done = unsafe { libc::ptrace(what, tid, nothing, libc::c_long::from(data)) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// Counts without end.
    fn busy() -> Child {
        Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap()
    }

    fn stat(pid: u32) -> (char, u64) {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (fields[0].chars().next().unwrap(), fields[11].parse().unwrap())
    }

    fn runs_again(pid: u32) -> bool {
        let before = stat(pid).1;
        (0..500).any(|_| {
            sleep(Duration::from_millis(20));
            stat(pid).1 > before
        })
    }

    #[test]
    fn stands_still_and_goes_on() {
        let mut child = busy();
        let pid = child.id();
        let paused = Paused::stop(pid, Duration::from_secs(20)).unwrap();
        assert_eq!(stat(pid).0, 't');
        let before = stat(pid).1;
        sleep(Duration::from_millis(100));
        assert_eq!(stat(pid).1, before, "no CPU time while it stands");
        assert!(matches!(Paused::stop(pid, Duration::ZERO), Err(PauseError::Refused(_))));
        assert!(paused.resume() >= Duration::from_millis(100));
        assert!(runs_again(pid));
        drop(Paused::stop(pid, Duration::from_secs(20)).unwrap());
        assert!(runs_again(pid), "also when it is dropped");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(Paused::stop(pid, Duration::from_secs(1)), Err(PauseError::Gone)));
    }

    /// The thread that traces ends without letting go, as it does when the
    /// agent is killed: the kernel resumes the process.
    #[test]
    fn goes_on_when_its_tracer_is_gone() {
        let mut child = busy();
        let pid = child.id();
        std::thread::spawn(move || {
            let paused = Paused::stop(pid, Duration::from_secs(20)).unwrap();
            assert_eq!(stat(pid).0, 't');
            std::mem::forget(paused);
        })
        .join()
        .unwrap();
        assert!(runs_again(pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_is_stopped_already_stays_so() {
        let mut child = busy();
        let pid = child.id();
        let id = libc::pid_t::try_from(pid).unwrap();
        // SAFETY: a signal to a child of ours.
        unsafe { libc::kill(id, libc::SIGSTOP) };
        while stat(pid).0 != 'T' {
            sleep(LOOK);
        }
        drop(Paused::stop(pid, Duration::from_secs(20)).unwrap());
        sleep(Duration::from_millis(50));
        assert_eq!(stat(pid).0, 'T');
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
