//! Findings against what Go expects.

use std::collections::BTreeMap;

use serde_json::Value;

use super::programs::Program;

/// What became of one program.
#[derive(Debug, Default)]
pub struct Outcome {
    /// It ended by itself, so: nothing can be said of it.
    pub ended: Option<String>,
    /// Expected leaks that are findings.
    pub found: usize,
    /// Those that are none, and how many goroutines stand there.
    pub missed: Vec<(String, u64)>,
    /// Those of which there was not a single goroutine: an order of events
    /// that did not come about.
    pub absent: Vec<String>,
    /// Findings that Go does not list.
    pub other: Vec<String>,
    /// Findings on the repeated program itself: what its main goroutine waits
    /// for is no leak to Go, but here a new one comes to wait every second.
    pub mains: usize,
}

/// A place where goroutines stand.
#[derive(Default)]
struct Place {
    /// As Go's test writes a leak, outermost function and reason; with the
    /// runtime's own word and with ours, which tells more locks apart.
    names: [String; 2],
    goroutines: u64,
    is_finding: bool,
    is_main: bool,
}

pub fn outcome<'a>(
    p: &Program,
    findings: impl Iterator<Item = &'a Value>,
    dump: &Value,
) -> Outcome {
    let places = places(findings, dump);
    let mut o = Outcome::default();
    for pattern in &p.patterns {
        let of = places.iter().filter(|p| p.names.iter().any(|n| pattern.is_match(n)));
        let text = pattern.as_str().replace('\\', "");
        match of.max_by_key(|p| (p.is_finding, p.goroutines)) {
            Some(place) if place.is_finding => o.found += 1,
            Some(place) => o.missed.push((text, place.goroutines)),
            None => o.absent.push(text),
        }
    }
    let expected = |place: &Place| {
        p.patterns.iter().any(|pattern| place.names.iter().any(|name| pattern.is_match(name)))
    };
    for place in places.into_iter().filter(|p| p.is_finding && !expected(p)) {
        let [_, name] = place.names;
        if place.is_main {
            o.mains += 1;
        } else {
            o.other.push(name);
        }
    }
    o
}

fn places<'a>(findings: impl Iterator<Item = &'a Value>, dump: &Value) -> Vec<Place> {
    let named: Vec<&Value> =
        findings.filter(|f| matches!(f["kind"].as_str(), Some("goroutine" | "thread"))).collect();
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    for g in dump["groups"].as_array().map_or(&[][..], Vec::as_slice) {
        let stack = g["stack"].as_array().map_or(&[][..], Vec::as_slice);
        let Some(outermost) = stack.last().and_then(|f| f["function"].as_str()) else { continue };
        let words = g["wait_reason"].as_str().unwrap_or("");
        let reason = in_new_words(words, stack);
        let is_this = |f: &&&Value| {
            f["blocked_on"]["reason"] == *reason
                && stack.iter().any(|s| s["line"] == f["blocked_on"]["line"])
                && ["file", "line"].iter().all(|k| g["created_by"][k] == f["site"][k])
        };
        let name = outermost.strip_prefix("main.").unwrap_or(outermost);
        let names = [words, &reason].map(|why| format!("{name}(...) [{why}]"));
        let place = places.entry(names[1].clone()).or_default();
        place.goroutines += g["count"].as_u64().unwrap_or(0);
        place.is_finding |= named.iter().any(|f| is_this(&f));
        place.names = names;
        place.is_main |= g["created_by"]["function"] == "main.main";
    }
    places.into_values().collect()
}

/// One word of older Go versions stands for several of newer ones.
fn in_new_words(words: &str, stack: &[Value]) -> String {
    let calls = |name: &str| {
        stack.iter().any(|f| f["function"].as_str().is_some_and(|f| f.starts_with(name)))
    };
    let new = match words {
        "semacquire" if calls("sync.(*WaitGroup).Wait") => "sync.WaitGroup.Wait",
        "semacquire" if calls("sync.(*RWMutex).RLock") => "sync.RWMutex.RLock",
        "semacquire" | "sync.Mutex.Lock" if calls("sync.(*RWMutex).Lock") => "sync.RWMutex.Lock",
        "semacquire" if calls("sync.(*Mutex).") => "sync.Mutex.Lock",
        other => other,
    };
    new.to_owned()
}

#[cfg(test)]
mod tests {
    use regex::Regex;
    use serde_json::json;

    use super::*;

    fn group(function: &str, line: u32, count: u64) -> Value {
        json!({
            "count": count, "wait_reason": "chan send",
            "stack": [{"function": function, "line": line}],
            "created_by": {"function": "main.F", "file": "f.go", "line": 3},
        })
    }

    #[test]
    fn found_missed_absent_and_other_are_told_apart() {
        let patterns = ["F\\.func1\\(.* \\[chan send\\]", "F\\.func2\\(", "F\\.func9\\("];
        let p = Program {
            name: "F".into(),
            folder: 0,
            patterns: patterns.iter().map(|p| Regex::new(p).unwrap()).collect(),
            flaky: false,
        };
        let mut main = group("main.F", 7, 90);
        main["created_by"]["function"] = json!("main.main");
        let groups = [
            group("main.F.func1", 4, 80),
            group("main.F.func2", 5, 3),
            group("main.F.func3", 6, 50),
            main,
        ];
        let finding = |line: u32| {
            json!({
                "kind": "goroutine", "site": {"file": "f.go", "line": 3},
                "blocked_on": {"reason": "chan send", "line": line},
            })
        };
        let findings = [finding(4), finding(6), finding(7)];
        let o = outcome(&p, findings.iter(), &json!({"groups": groups}));
        assert_eq!((o.found, o.mains), (1, 1), "{o:?}");
        assert_eq!(o.missed, [("F.func2(".to_owned(), 3)]);
        assert_eq!(o.absent, ["F.func9("]);
        assert_eq!(o.other, ["F.func3(...) [chan send]"]);
    }
}
