//! What a run is called, where and when it began.

use std::time::Duration;

use super::clock::{monotonic_ns, wall_ns};
use crate::stream::Session;

pub fn begin(environment: Option<String>, interval: Duration, threshold: f64) -> Session {
    let wall_ns = wall_ns();
    Session {
        execution_id: execution_id(wall_ns),
        host: hostname(),
        environment,
        wall_ns,
        t_ns: monotonic_ns(),
        interval_ns: u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX),
        threshold,
    }
}

fn execution_id(wall_ns: u64) -> String {
    let time = i128::from(wall_ns);
    let t = time::OffsetDateTime::from_unix_timestamp_nanos(time)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let format = time::macros::format_description!("[year][month][day]-[hour][minute]");
    let stamp = t.format(&format).unwrap_or_default();
    format!("claw-{stamp}-{:04x}", (wall_ns / 1000) & 0xffff)
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|s| s.trim().to_owned())
        .unwrap_or_default()
}
