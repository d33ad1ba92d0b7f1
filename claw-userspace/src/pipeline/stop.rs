//! The signals that end a watch, and the one that suspends it. Listened to before
//! anything is attached or changed, so that none finds the agent unprepared.

use tokio::signal::unix::{Signal, SignalKind, signal};

pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Stop {
    /// # Errors
    /// When the kernel refuses a handler.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// Ctrl-Z.
pub struct Suspend(Signal);

impl Suspend {
    /// # Errors
    /// When the kernel refuses a handler.
    pub fn listen() -> std::io::Result<Self> {
        signal(SignalKind::from_raw(libc::SIGTSTP)).map(Self)
    }

    pub async fn received(&mut self) {
        self.0.recv().await;
    }

    /// Do what the signal would have done: stop until another says to go on.
    pub fn obey(&self) {
        // SAFETY: it has no other effect than to stop this process.
        unsafe { libc::raise(libc::SIGSTOP) };
    }
}
