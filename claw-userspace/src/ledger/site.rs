//! Sites: allocation stacks trimmed to where the user's code begins.

use rustc_hash::FxHashMap;

use crate::symbol::{Frame, Origin};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(pub u32);

/// An allocation or creation site.
#[derive(Clone, Debug)]
pub struct Site {
    /// Hash of what identifies it, hex.
    pub id: String,
    /// Leaf first: from the first frame outside the runtime to the last one.
    pub frames: Vec<Frame>,
    /// Runtime frames below those, leaf first: how it was allocated.
    pub runtime: Vec<Frame>,
    /// Index into `frames` of the line to blame.
    pub culprit: usize,
}

impl Site {
    pub fn culprit_frame(&self) -> Option<&Frame> {
        self.frames.get(self.culprit)
    }

    /// `frames` is a whole stack, leaf first.
    pub(super) fn from_stack(frames: Vec<Frame>) -> Self {
        let is_runtime = |f: &Frame| f.origin == Origin::Runtime;
        let first = frames.iter().position(|f| !is_runtime(f)).unwrap_or(0);
        let mut runtime = frames;
        let mut frames = runtime.split_off(first);
        // The bottom of a goroutine is the runtime again.
        while frames.len() > 1 && frames.last().is_some_and(is_runtime) {
            frames.pop();
        }
        let culprit = frames
            .iter()
            .position(|f| matches!(f.origin, Origin::Main | Origin::Dependency))
            .unwrap_or(0);
        let mut site = Self { id: String::new(), frames, runtime, culprit };
        site.id = site.identify();
        site
    }

    /// FNV-1a over the functions from the leaf to the culprit and the culprit's
    /// line within its function: the same when lines above it move, different
    /// for two lines of one function.
    fn identify(&self) -> String {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let mut add = |bytes: &[u8]| {
            for b in bytes.iter().chain(&[0xff]) {
                hash = (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        for f in self.frames.iter().take(self.culprit + 1) {
            add(f.function.as_bytes());
        }
        if let Some(f) = self.culprit_frame() {
            add(&f.line.saturating_sub(f.start_line).to_le_bytes());
        }
        format!("{hash:016x}")
    }
}

/// All sites of one process, interned by id.
#[derive(Debug)]
pub struct Sites {
    sites: Vec<Site>,
    by_id: FxHashMap<String, SiteId>,
    by_stack: FxHashMap<Vec<u64>, SiteId>,
    frames: FxHashMap<u64, Vec<Frame>>,
    most: usize,
    /// Stacks that found no room; their bytes are counted under site 0.
    pub forgotten: u64,
}

/// Stacks remembered per site, on average.
const STACKS_PER_SITE: usize = 8;
/// Addresses remembered per site, on average.
const ADDRESSES_PER_SITE: usize = 32;

impl Sites {
    pub fn new(most: usize) -> Self {
        let unknown = Site::from_stack(Vec::new());
        Self {
            by_id: std::iter::once((unknown.id.clone(), SiteId(0))).collect(),
            sites: vec![unknown],
            by_stack: FxHashMap::default(),
            frames: FxHashMap::default(),
            most,
            forgotten: 0,
        }
    }

    pub fn learn(&mut self, pc: u64, frames: Vec<Frame>) {
        if self.frames.len() < self.most * ADDRESSES_PER_SITE {
            self.frames.insert(pc, frames);
        } else {
            self.forgotten += 1;
        }
    }

    pub fn frames(&self, pc: u64) -> &[Frame] {
        self.frames.get(&pc).map_or(&[], Vec::as_slice)
    }

    /// The site of a stack of return addresses, leaf first.
    pub fn of_stack(&mut self, stack: &[u64]) -> SiteId {
        if let Some(id) = self.by_stack.get(stack) {
            return *id;
        }
        let frames: Vec<Frame> =
            stack.iter().flat_map(|pc| self.frames(*pc).iter().cloned()).collect();
        let site = Site::from_stack(frames);
        let id = match self.by_id.get(&site.id) {
            Some(id) => *id,
            None if self.sites.len() < self.most => {
                let id = SiteId(u32::try_from(self.sites.len()).unwrap_or(0));
                self.by_id.insert(site.id.clone(), id);
                self.sites.push(site);
                id
            }
            None => {
                self.forgotten += 1;
                return SiteId(0);
            }
        };
        if self.by_stack.len() < self.most * STACKS_PER_SITE {
            self.by_stack.insert(stack.to_vec(), id);
        }
        id
    }

    pub fn get(&self, id: SiteId) -> Option<&Site> {
        self.sites.get(id.0 as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn frame(function: &str, line: u32, start_line: u32, origin: Origin) -> Frame {
        let file = "/a.go".to_owned();
        Frame { function: function.into(), file, line, start_line, inlined: false, origin }
    }

    fn sites(lines: [u32; 2], start: u32) -> Sites {
        let mut s = Sites::new(10);
        s.learn(1, vec![frame("runtime.mallocgc", 5, 1, Origin::Runtime)]);
        s.learn(2, vec![frame("strings.(*Builder).grow", 7, 1, Origin::Std)]);
        s.learn(3, vec![frame("main.leak", lines[0], start, Origin::Main)]);
        s.learn(4, vec![frame("main.leak", lines[1], start, Origin::Main)]);
        s.learn(5, vec![frame("runtime.goexit", 1, 1, Origin::Runtime)]);
        s
    }

    #[test]
    fn culprit_is_the_first_line_of_the_users_code() {
        let mut s = sites([20, 21], 10);
        let id = s.of_stack(&[1, 2, 3, 5]);
        let site = s.get(id).unwrap();
        assert_eq!(site.culprit_frame().unwrap().line, 20);
        assert_eq!(site.frames.len(), 2, "runtime frames are trimmed on both sides");
        assert_eq!(site.runtime[0].function, "runtime.mallocgc");
        assert_ne!(s.of_stack(&[1, 2, 4, 5]), id, "another line is another site");
        assert_eq!(s.of_stack(&[1, 2, 3]), id, "callers do not matter");
    }

    #[test]
    fn id_survives_moved_lines() {
        let (mut a, mut b) = (sites([20, 21], 10), sites([120, 121], 110));
        let (ia, ib) = (a.of_stack(&[1, 2, 3]), b.of_stack(&[1, 2, 3]));
        assert_eq!(a.get(ia).unwrap().id, b.get(ib).unwrap().id);
    }

    #[test]
    fn bounded() {
        let mut s = Sites::new(2);
        for pc in 1..200 {
            s.learn(pc, vec![frame(&format!("main.f{pc}"), 1, 1, Origin::Main)]);
            s.of_stack(&[pc]);
        }
        assert!(s.sites.len() == 2 && s.frames.len() == 64 && s.by_stack.len() <= 16);
        assert!(s.forgotten > 100);
        assert_eq!(s.of_stack(&[199]), SiteId(0));
    }
}
