//! The two system calls that aya 0.14 has no door for: loading a program for
//! `uprobe_multi`, and attaching one program to many places with a cookie
//! each. One link attaches and detaches all of them, where a perf event each
//! takes the kernel 0.1 s to close. Where the kernel has none (or one that
//! takes a thread for its process, before 6.10), perf events do the same.

use std::{
    collections::HashSet,
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use aya_obj::Object;

use aya_obj::generated::{
    bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type, perf_event_attr,
};

use super::object::{ProbeError, load_error};

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub file_offset: u64,
    /// Tells the program where it is.
    pub cookie: u64,
}

/// First Linux whose `uprobe_multi` compares processes and not threads.
const MULTI_SINCE: (u32, u32) = (6, 10);
/// `BPF_F_UPROBE_MULTI_RETURN` (`include/uapi/linux/bpf.h`). Of a perf event it is
/// bit 0 of `config` (`/sys/bus/event_source/devices/uprobe/format/retprobe`).
const MULTI_RETURN: u32 = 1;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;

/// Set in the environment, probes are attached as on kernels that have no
/// `uprobe_multi`: for the tests, which run on one that has.
const WITHOUT_MULTI: &str = "CLAW_EBPF_WITHOUT_UPROBE_MULTI";

/// Attached probes: dropping them detaches, which blocks until no CPU is
/// inside.
#[derive(Debug, Default)]
pub struct Links {
    /// Links before the perf events they are on.
    fds: Vec<OwnedFd>,
}

impl Links {
    /// These as well.
    pub fn add(&mut self, mut others: Self) {
        self.fds.append(&mut others.fds);
    }
}

/// A loaded program and how it can be attached.
#[derive(Debug)]
pub struct Loaded {
    fd: OwnedFd,
    multi: bool,
}

fn bpf(cmd: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let size = size_of::<bpf_attr>();
    // SAFETY: attr is a whole, initialised bpf_attr, and the pointers in it are
    // to memory that the caller keeps until this returns.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, cmd as libc::c_int, &raw mut *attr, size) };
    owned(fd)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: the system call made this descriptor for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn empty() -> bpf_attr {
    // SAFETY: all zero is what an attribute without settings is.
    unsafe { std::mem::zeroed() }
}

fn kernel() -> Option<(u32, u32)> {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

pub(super) fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::HashMap(d)
        | Map::Array(d)
        | Map::PerCpuArray(d)
        | Map::RingBuf(d)
        | Map::StackTraceMap(d)
        | Map::LruHashMap(d)
        | Map::PerCpuHashMap(d) => Some(d),
        _ => None,
    }
}

/// The programs of an object, beside those that aya loads and on the same maps.
pub struct Beside(Object);

impl Beside {
    /// `bpf` has to hold all of its maps still.
    ///
    /// # Errors
    /// When the object makes no sense.
    pub fn new(object: &[u8], bpf: &Ebpf) -> Result<Self, ProbeError> {
        let mut parsed = Object::parse(object).map_err(load_error)?;
        let text: HashSet<usize> = parsed.functions.keys().map(|(section, _)| *section).collect();
        let maps = parsed.maps.clone();
        let known = maps.iter().filter_map(|(name, map)| {
            let fd = data(bpf.map(name)?)?.fd().as_fd().as_raw_fd();
            Some((name.as_str(), fd, map))
        });
        parsed.relocate_maps(known, &text).map_err(load_error)?;
        parsed.relocate_calls(&text).map_err(load_error)?;
        Ok(Self(parsed))
    }

    /// # Errors
    /// When the kernel refuses the program, with the reason.
    pub fn load(&self, name: &'static str) -> Result<Loaded, ProbeError> {
        let program = self.0.programs.get(name).ok_or(ProbeError::Missing(name))?;
        let function =
            self.0.functions.get(&program.function_key()).ok_or(ProbeError::Missing(name))?;
        Loaded::load(name, &function.instructions, &self.0.license).map_err(load_error)
    }
}

impl Loaded {
    /// # Errors
    /// When the kernel refuses the program.
    fn load(name: &str, instructions: &[bpf_insn], license: &CString) -> io::Result<Self> {
        let one = |attach: u32| {
            let mut attr = empty();
            // SAFETY: this is the member for BPF_PROG_LOAD.
            let a = unsafe { &mut attr.__bindgen_anon_3 };
            a.prog_type = bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32;
            a.insns = instructions.as_ptr() as u64;
            a.insn_cnt = u32::try_from(instructions.len()).unwrap_or(u32::MAX);
            a.license = license.as_ptr() as u64;
            // The last byte stays zero.
            let room = a.prog_name.len() - 1;
            for (to, from) in a.prog_name.iter_mut().zip(name.bytes()).take(room) {
                *to = from.cast_signed();
            }
            a.expected_attach_type = attach;
            bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)
        };
        let wanted = std::env::var_os(WITHOUT_MULTI).is_none();
        if wanted
            && kernel().is_some_and(|k| k >= MULTI_SINCE)
            && let Ok(fd) = one(bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32)
        {
            return Ok(Self { fd, multi: true });
        }
        Ok(Self { fd: one(0)?, multi: false })
    }

    pub fn multi(&self) -> bool {
        self.multi
    }

    /// Attach to all places of a file, for process `pid` alone.
    ///
    /// # Errors
    /// When the kernel refuses; then nothing is attached.
    pub fn attach(&self, pid: u32, file: &Path, points: &[Place]) -> io::Result<Links> {
        self.attach_at(pid, file, points, false)
    }

    /// The same, where the functions at these places return.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn attach_returns(&self, pid: u32, file: &Path, points: &[Place]) -> io::Result<Links> {
        self.attach_at(pid, file, points, true)
    }

    fn attach_at(
        &self,
        pid: u32,
        file: &Path,
        points: &[Place],
        returns: bool,
    ) -> io::Result<Links> {
        let path = CString::new(file.as_os_str().as_bytes())?;
        let fds = if self.multi {
            vec![self.attach_multi(pid, &path, points, returns)?]
        } else {
            self.attach_perf(pid, &path, points, returns)?
        };
        Ok(Links { fds })
    }

    fn attach_multi(
        &self,
        pid: u32,
        path: &CString,
        points: &[Place],
        returns: bool,
    ) -> io::Result<OwnedFd> {
        let offsets: Vec<u64> = points.iter().map(|p| p.file_offset).collect();
        let cookies: Vec<u64> = points.iter().map(|p| p.cookie).collect();
        let mut attr = empty();
        // SAFETY: this is the member for BPF_LINK_CREATE, and all of it is
        // plain integers.
        unsafe {
            let a = &mut attr.link_create;
            a.__bindgen_anon_1.prog_fd = self.fd.as_raw_fd().unsigned_abs();
            a.attach_type = bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32;
            let m = &mut a.__bindgen_anon_3.uprobe_multi;
            m.path = path.as_ptr() as u64;
            m.offsets = offsets.as_ptr() as u64;
            m.cookies = cookies.as_ptr() as u64;
            m.cnt = u32::try_from(points.len()).unwrap_or(0);
            m.pid = pid;
            m.flags = if returns { MULTI_RETURN } else { 0 };
        }
        bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)
    }

    fn attach_perf(
        &self,
        pid: u32,
        path: &CString,
        points: &[Place],
        returns: bool,
    ) -> io::Result<Vec<OwnedFd>> {
        let kind = std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")?;
        let kind = kind.trim().parse().map_err(io::Error::other)?;
        let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
        let (mut links, mut events) = (Vec::new(), Vec::new());
        for point in points {
            // SAFETY: all zero is an event without settings.
            let mut event: perf_event_attr = unsafe { std::mem::zeroed() };
            event.size = u32::try_from(size_of::<perf_event_attr>()).unwrap_or(0);
            event.type_ = kind;
            event.config = u64::from(returns);
            event.__bindgen_anon_3.config1 = path.as_ptr() as u64;
            event.__bindgen_anon_4.config2 = point.file_offset;
            // SAFETY: event and the path in it outlive the call.
            let fd = unsafe {
                libc::syscall(
                    libc::SYS_perf_event_open,
                    &raw const event,
                    pid,
                    -1 as libc::c_int,
                    -1 as libc::c_int,
                    PERF_FLAG_FD_CLOEXEC,
                )
            };
            let fd = owned(fd)?;
            let mut attr = empty();
            // SAFETY: as in `attach_multi`.
            unsafe {
                let a = &mut attr.link_create;
                a.__bindgen_anon_1.prog_fd = self.fd.as_raw_fd().unsigned_abs();
                a.__bindgen_anon_2.target_fd = fd.as_raw_fd().unsigned_abs();
                a.attach_type = bpf_attach_type::BPF_PERF_EVENT as u32;
                a.__bindgen_anon_3.perf_event.bpf_cookie = point.cookie;
            }
            links.push(bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?);
            events.push(fd);
        }
        links.extend(events);
        Ok(links)
    }
}
