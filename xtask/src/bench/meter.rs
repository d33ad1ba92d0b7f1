//! Programs that are measured, and those that watch them.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::command::Running;

/// How a window and what is beside it are told apart, s.
#[derive(Clone, Copy)]
pub struct Around {
    /// What belongs to it beside its own time: putting probes in and taking them
    /// out, and the 20 ms between two lines.
    pub before: f64,
    pub after: f64,
    /// Time beside it whose rate is believed, and that is still near.
    pub beside: [f64; 2],
}

/// A program that prints lines "nanoseconds count" while it works.
pub struct Meter {
    _process: Running,
    lines: Arc<Mutex<Vec<(f64, f64)>>>,
    /// When its clock began, seconds since the Unix epoch: of all lines, the one
    /// that came fastest tells.
    began: Arc<Mutex<f64>>,
    /// What it said first.
    head: Arc<Mutex<String>>,
}

impl Meter {
    pub fn start(command: &mut Command) -> Result<(Self, u32)> {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        let pid = child.id();
        let out = child.stdout.take().context("no output")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        let head = Arc::new(Mutex::new(String::new()));
        let kept_head = Arc::clone(&head);
        let began = Arc::new(Mutex::new(f64::MAX));
        let kept_began = Arc::clone(&began);
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if let Ok(mut head) = kept_head.lock()
                    && head.is_empty()
                {
                    head.clone_from(&line);
                }
                let mut numbers = line.split(' ').map_while(|n| n.parse::<f64>().ok());
                if let (Some(t), Some(n)) = (numbers.next(), numbers.next())
                    && let Ok(mut kept) = kept.lock()
                {
                    kept.push((t / 1e9, n));
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    if let Ok(mut began) = kept_began.lock() {
                        *began = began.min(now.as_secs_f64() - t / 1e9);
                    }
                }
            }
        });
        Ok((Self { _process: Running(child), lines, began, head }, pid))
    }

    /// The first line that it prints.
    ///
    /// # Errors
    /// When the program says nothing.
    pub fn head(&self) -> Result<String> {
        said(|| self.head.lock().ok().map(|head| head.clone()).filter(|head| !head.is_empty()))
    }

    /// Counts per second in the `length` from now on.
    pub fn rate(&self, length: Duration) -> Result<f64> {
        let from = self.latest()?;
        thread::sleep(length);
        let to = self.latest()?;
        ensure!(to.0 > from.0, "the measured program stands still");
        Ok((to.1 - from.1) / (to.0 - from.0))
    }

    /// The count at a moment, seconds since the Unix epoch, between the lines
    /// before and after it.
    ///
    /// # Errors
    /// When it is before the first line or after the last.
    pub fn count_at(&self, unix_s: f64) -> Result<f64> {
        let failed = || anyhow::anyhow!("its reader failed");
        let t = unix_s - *self.began.lock().map_err(|_| failed())?;
        let lines = self.lines.lock().map_err(|_| failed())?;
        let after = lines.partition_point(|(at, _)| *at < t);
        let two = after.checked_sub(1).and_then(|i| Some((lines.get(i)?, lines.get(after)?)));
        let (from, to) = two.context("the program said nothing around that time")?;
        Ok(from.1 + (to.1 - from.1) * (t - from.0) / (to.0 - from.0).max(1e-9))
    }

    /// Seconds of its work that a window, from and to a moment in seconds since the
    /// Unix epoch, has cost: the work in it, and what belongs to it, is held against
    /// the rates just before that and just after. How fast the machine is meanwhile
    /// does not matter, nor does what slows the program all the time. `None` where
    /// too little of `free` is left on either side.
    pub fn lost_s(&self, (from, to): (f64, f64), free: (f64, f64), a: Around) -> Option<f64> {
        let work = |from: f64, to: f64| Some(self.count_at(to).ok()? - self.count_at(from).ok()?);
        let [least, most] = a.beside;
        let beside = |s: f64| Some(s.min(most)).filter(|s| *s >= least);
        let (from, to) = (from - a.before, to + a.after);
        let (before, after) = (beside(from - free.0)?, beside(free.1 - to)?);
        let rate =
            f64::midpoint(work(from - before, from)? / before, work(to, to + after)? / after);
        Some(to - from - work(from, to)? / rate)
    }

    /// Share of the work that what happened in `windows` left, oldest first, see
    /// [`Self::lost_s`]. `None` where fewer than three are apart enough.
    pub fn kept_around(&self, windows: &[(f64, f64)], a: Around) -> Option<f64> {
        let lost: Vec<f64> = windows
            .windows(3)
            .filter_map(|w| self.lost_s(w[1], (w[0].1 + a.after, w[2].0 - a.before), a))
            .collect();
        let (first, last) = windows.first().zip(windows.last())?;
        let apart = (last.0 - first.0) / (windows.len() - 1) as f64;
        let mean = lost.iter().sum::<f64>() / lost.len() as f64;
        (!lost.is_empty()).then_some(1.0 - mean / apart)
    }

    /// Counts per second between two moments, seconds since the Unix epoch, without
    /// `windows` and what belongs to them.
    pub fn rate_outside(
        &self,
        windows: &[(f64, f64)],
        (from, to): (f64, f64),
        a: Around,
    ) -> Option<f64> {
        let (mut time, mut work, mut at) = (0.0, 0.0, from);
        let ends = windows.iter().map(|w| (w.0 - a.before, w.1 + a.after)).chain([(to, to)]);
        for (opened, closed) in ends {
            let until = opened.min(to);
            if until > at {
                time += until - at;
                work += self.count_at(until).ok()? - self.count_at(at).ok()?;
            }
            at = at.max(closed);
        }
        (time > 0.0).then(|| work / time)
    }

    /// The same moment in seconds since the Unix epoch, of one in its own time.
    pub fn unix_s(&self, own_s: f64) -> Option<f64> {
        Some(own_s + *self.began.lock().ok()?)
    }

    /// Seconds and count of the latest line.
    ///
    /// # Errors
    /// When the program says nothing.
    pub fn latest(&self) -> Result<(f64, f64)> {
        said(|| self.lines.lock().ok().and_then(|l| l.last().copied()))
    }
}

/// Wait for what a measured program says.
fn said<T>(look: impl Fn() -> Option<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        ensure!(began.elapsed() < Duration::from_secs(20), "the measured program says nothing");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The report at the end of what `watch --format jsonl` prints.
///
/// # Errors
/// When it ends with something else.
pub fn report(jsonl: &[u8]) -> Result<Value> {
    let last = jsonl.split(|b| *b == b'\n').rfind(|l| !l.is_empty());
    Ok(serde_json::from_slice(last.context("no report")?)?)
}

/// From and to of the latest windows on a target of a report, seconds since the Unix
/// epoch.
pub fn latest_windows(target: &Value) -> Vec<(f64, f64)> {
    let ends = |w: &Value| w["from_unix_s"].as_f64().zip(w["to_unix_s"].as_f64());
    target["latest_windows"].as_array().into_iter().flatten().filter_map(ends).collect()
}

/// Something attached to a process; ends with an interrupt.
pub struct Watcher {
    child: Child,
}

impl Watcher {
    /// Start and wait until a line of its output contains `ready`. An empty
    /// `ready` waits for nothing.
    pub fn start(command: &mut Command, ready: &str) -> Result<Self> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        let out = child.stdout.take().context("no output")?;
        let mut errors = child.stderr.take().context("no errors")?;
        let (send, receive) = mpsc::channel();
        let wanted = ready.to_owned();
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if line.contains(&wanted) {
                    let _ = send.send(());
                }
            }
        });
        let said = thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        let mut watcher = Self { child };
        if !ready.is_empty() && receive.recv_timeout(Duration::from_secs(60)).is_err() {
            watcher.stop()?;
            bail!("{command:?} did not get ready: {}", said.join().unwrap_or_default());
        }
        Ok(watcher)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stop(&mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        // SAFETY: the child is ours and not reaped yet.
        unsafe { libc::kill(pid, libc::SIGINT) };
        let began = Instant::now();
        while self.child.try_wait()?.is_none() {
            if began.elapsed() > Duration::from_secs(60) {
                self.child.kill()?;
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// Load that keeps two processors busy: with eight connections they are idle an
/// eighth of the time.
pub const FULL_LOAD: [&str; 2] = ["-conns", "32"];

/// The shop and a load on it.
pub struct Service {
    /// Counts its allocations, when told to.
    pub shop: Meter,
    pub load: Meter,
    pub pid: u32,
    pub addr: String,
}

impl Service {
    pub fn start(
        programs: &super::Programs,
        shop_args: &[&str],
        load_args: &[&str],
    ) -> Result<Self> {
        let (shop, load) = (Command::new(&programs.shop), Command::new(&programs.load));
        Self::run(shop, load, shop_args, load_args)
    }

    /// The service on one processor, its load on another: the service alone decides
    /// how much is done, and what it loses is not made up for by time that the load
    /// does not use.
    pub fn start_apart(
        programs: &super::Programs,
        shop_args: &[&str],
        load_args: &[&str],
    ) -> Result<Self> {
        let on = |cpu: &str, program: &Path| {
            let mut c = Command::new("taskset");
            c.args(["-c", cpu]).arg(program);
            c
        };
        Self::run(on("0", &programs.shop), on("1", &programs.load), shop_args, load_args)
    }

    fn run(
        mut shop: Command,
        mut load: Command,
        shop_args: &[&str],
        load_args: &[&str],
    ) -> Result<Self> {
        let (shop, _) = Meter::start(shop.args(shop_args))?;
        let ready: Value = serde_json::from_str(&shop.head()?)?;
        let addr = ready["addr"].as_str().context("the shop gave no address")?.to_owned();
        let pid = u32::try_from(ready["pid"].as_u64().context("no pid")?)?;
        load.args(["-addr", &addr, "-duration", "1h", "-progress"]).args(load_args);
        let (load, _) = Meter::start(&mut load)?;
        Ok(Self { shop, load, pid, addr })
    }
}

/// A plain GET on this machine; gives the bytes received.
pub fn get(addr: &str, path: &str) -> Result<Vec<u8>> {
    let mut stream = std::net::TcpStream::connect(addr)?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n")?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    let body = all
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map(|at| all.split_off(at + 4))
        .context("no answer")?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_window_has_cost() {
        // 1000 a second, half as much between 4.0 and 4.4 s, as a machine that gets
        // faster by a tenth there.
        let program = "BEGIN { for (i = 0; i <= 400; i++) { t = i / 50; \
            n += t > 4.4 ? 22 : t > 4 ? 10.5 : 20; printf \"%.0f %.0f\\n\", t * 1e9, n } \
            fflush(); system(\"sleep 60\") }";
        let (m, _) = Meter::start(Command::new("awk").arg(program)).unwrap();
        while m.latest().unwrap().0 < 7.99 {
            thread::sleep(Duration::from_millis(5));
        }
        let unix = |own| m.unix_s(own).unwrap();
        let a = Around { before: 0.1, after: 0.1, beside: [0.5, 1.0] };
        let (window, free) = ((unix(4.0), unix(4.4)), (unix(2.0), unix(6.0)));
        let lost = m.lost_s(window, free, a).unwrap();
        assert!((lost - 0.2).abs() < 0.01, "{lost}");
        assert!(m.lost_s(window, (unix(3.5), unix(6.0)), a).is_none(), "too near");
        let rate = |from, to| m.rate_outside(&[window], (unix(from), unix(to)), a).unwrap();
        assert!((rate(3.0, 5.0) - 1036.0).abs() < 15.0, "{}", rate(3.0, 5.0));
        assert!((rate(2.0, 4.2) - 1000.0).abs() < 5.0, "{}", rate(2.0, 4.2));
        let kept = m.kept_around(&[(unix(2.0), unix(2.1)), window, (unix(6.0), unix(6.1))], a);
        assert!((kept.unwrap() - 0.9).abs() < 0.01, "{kept:?}");
    }
}
