//! Go version strings.

/// A Go version as the runtime reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoVersion {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
    /// Verbatim, e.g. `go1.26.6 X:nodwarf5`.
    pub raw: String,
}

impl GoVersion {
    /// Accepts `go1.26.6`, `go1.27rc1`, `go1.26.6 X:…` and
    /// `devel go1.28-abcdef …`.
    pub fn parse(raw: &str) -> Option<Self> {
        let at = raw.find("go1.")?;
        let mut parts = raw.get(at + 2..)?.split(|c: char| !(c.is_ascii_digit() || c == '.'));
        let mut numbers = parts.next()?.split('.');
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.parse().ok()?;
        let patch = numbers.next().and_then(|p| p.parse().ok()).unwrap_or(0);
        Some(Self { major, minor, patch, raw: raw.to_owned() })
    }

    /// `1.minor`, for comparison with a release.
    pub fn at_least(&self, minor: u32) -> bool {
        self.major > 1 || self.minor >= minor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_seen_in_the_wild() {
        let v = |s: &str| GoVersion::parse(s).map(|v| (v.major, v.minor, v.patch));
        assert_eq!(v("go1.26.6"), Some((1, 26, 6)));
        assert_eq!(v("go1.19"), Some((1, 19, 0)));
        assert_eq!(v("go1.27rc1"), Some((1, 27, 0)));
        assert_eq!(v("go1.26.8 X:jsonv2"), Some((1, 26, 8)));
        assert_eq!(v("devel go1.28-4a2b3c Tue"), Some((1, 28, 0)));
        assert_eq!(v("gccgo"), None);
        assert_eq!(v("go1."), None);
    }
}
