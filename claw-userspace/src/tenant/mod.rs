//! Which tenant an event belongs to: rules in order, the first match wins.

mod table;

pub use table::{NONE, OTHER, TenantId, TenantTable};

use claw_common::config::{MAX_KEY_LEN, MAX_KEYS};

const DEFAULT_KEYS: [&str; 3] = ["tenant", "tenant_id", "tenant-id"];
/// Of CPython's context variables and local variables.
const DEFAULT_NAMES: [&str; 2] = ["tenant", "tenant_id"];
/// Rules that a rank has room for.
const MAX_RULES: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The value of a pprof label of the goroutine.
    Label(String),
    /// A context variable of CPython's running context.
    ContextVar(String),
    /// A local variable in the nearest frame of CPython's that has it.
    Local(String),
    /// The running thread's name, as the kernel knows it.
    ThreadName,
    /// An environment variable of the process.
    Env(String),
    /// The process's container or cgroup.
    Cgroup,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RuleError {
    #[error(
        "--tenant {0}: expected label:KEY, contextvar:NAME, local:NAME, thread-name, \
             env:NAME or cgroup"
    )]
    Unknown(String),
    #[error("--tenant {0}: a label key has 1 to {MAX_KEY_LEN} bytes")]
    KeyLength(String),
    #[error("--tenant: at most {MAX_KEYS} label rules can be given")]
    TooManyKeys,
    #[error("--tenant: at most {MAX_RULES} rules can be given")]
    TooMany,
}

impl Rules {
    /// Parse `--tenant` values; none at all means the default labels.
    ///
    /// # Errors
    /// Names the rule that is wrong.
    pub fn parse(texts: &[String]) -> Result<Self, RuleError> {
        if texts.is_empty() {
            let all = |names: &[&str], rule: fn(String) -> Rule| -> Vec<Rule> {
                names.iter().map(|n| rule((*n).to_owned())).collect()
            };
            let mut rules = all(&DEFAULT_KEYS, Rule::Label);
            rules.extend(all(&DEFAULT_NAMES, Rule::ContextVar));
            rules.extend(all(&DEFAULT_NAMES, Rule::Local));
            return Ok(Self(rules));
        }
        if texts.len() > MAX_RULES {
            return Err(RuleError::TooMany);
        }
        let rules = texts
            .iter()
            .map(|text| match text.split_once(':') {
                Some(("label", key)) if (1..=MAX_KEY_LEN).contains(&key.len()) => {
                    Ok(Rule::Label(key.to_owned()))
                }
                Some(("label", _)) => Err(RuleError::KeyLength(text.clone())),
                Some(("contextvar", name)) if !name.is_empty() => {
                    Ok(Rule::ContextVar(name.to_owned()))
                }
                Some(("local", name)) if !name.is_empty() => Ok(Rule::Local(name.to_owned())),
                None if text == "thread-name" => Ok(Rule::ThreadName),
                Some(("env", name)) if !name.is_empty() => Ok(Rule::Env(name.to_owned())),
                None if text == "cgroup" => Ok(Rule::Cgroup),
                _ => Err(RuleError::Unknown(text.clone())),
            })
            .collect::<Result<Vec<_>, _>>()?;
        if rules.iter().filter(|r| matches!(r, Rule::Label(_))).count() > MAX_KEYS {
            return Err(RuleError::TooManyKeys);
        }
        Ok(Self(rules))
    }

    /// Label keys in order of preference: what the BPF side looks for.
    pub fn keys(&self) -> Vec<String> {
        self.0
            .iter()
            .filter_map(|r| match r {
                Rule::Label(key) => Some(key.clone()),
                _ => None,
            })
            .collect()
    }

    /// The rules that look inside a CPython process, with their rank among all;
    /// those after the first that `value` answers for the whole process are
    /// never asked.
    pub fn inside(&self, value: impl Fn(&Rule) -> Option<String>) -> Vec<(u8, Rule)> {
        let whole = |r: &Rule| value(r).is_some_and(|v| !v.is_empty());
        (0..)
            .zip(&self.0)
            .take_while(|(_, r)| !whole(r))
            .filter(|(_, r)| matches!(r, Rule::ContextVar(_) | Rule::Local(_) | Rule::ThreadName))
            .map(|(rank, r)| (rank, r.clone()))
            .collect()
    }

    /// The tenant of a whole process, by the first rule that `value` answers,
    /// and how many label keys come before that rule.
    pub fn of_process(&self, value: impl Fn(&Rule) -> Option<String>) -> Option<(String, u8)> {
        let mut labels = 0;
        for rule in &self.0 {
            if matches!(rule, Rule::Label(_)) {
                labels += 1;
            } else if let Some(found) = value(rule).filter(|v| !v.is_empty()) {
                return Some((found, labels));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Result<Rules, RuleError> {
        Rules::parse(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn default_is_the_usual_labels() {
        assert_eq!(parse(&[]).unwrap().keys(), ["tenant", "tenant_id", "tenant-id"]);
    }

    #[test]
    fn first_match_wins_across_kinds() {
        let rules = parse(&["label:org", "env:TENANT", "cgroup", "label:team"]).unwrap();
        assert_eq!(rules.keys(), ["org", "team"]);
        let env = |r: &Rule| matches!(r, Rule::Env(_)).then(|| "acme".to_owned());
        assert_eq!(rules.of_process(env), Some(("acme".into(), 1)));
        let cgroup = |r: &Rule| (*r == Rule::Cgroup).then(|| "c1".to_owned());
        assert_eq!(rules.of_process(cgroup), Some(("c1".into(), 1)));
        assert_eq!(rules.of_process(|_| None), None);
    }

    #[test]
    fn rules_of_the_inside_keep_their_rank() {
        let rules = parse(&["local:org", "env:T", "thread-name", "contextvar:who"]).unwrap();
        let ranks = |v: Vec<(u8, Rule)>| v.into_iter().map(|(r, _)| r).collect::<Vec<_>>();
        assert_eq!(ranks(rules.inside(|_| None)), [0, 2, 3]);
        let env = |r: &Rule| matches!(r, Rule::Env(_)).then(|| "acme".to_owned());
        assert_eq!(rules.inside(env), [(0, Rule::Local("org".into()))]);
        let named = |r: &Rule| matches!(r, Rule::ContextVar(_) | Rule::Local(_));
        assert_eq!(parse(&[]).unwrap().inside(|_| None).iter().filter(|r| named(&r.1)).count(), 4);
        assert_eq!(parse(&["local:a"; 17]), Err(RuleError::TooMany));
    }

    #[test]
    fn bad_rules_are_named() {
        assert_eq!(parse(&["tenant"]), Err(RuleError::Unknown("tenant".into())));
        assert_eq!(parse(&["env:"]), Err(RuleError::Unknown("env:".into())));
        assert_eq!(parse(&["local:"]), Err(RuleError::Unknown("local:".into())));
        assert!(matches!(parse(&["label:"]), Err(RuleError::KeyLength(_))));
        let long = format!("label:{}", "x".repeat(33));
        assert!(matches!(parse(&[&long]), Err(RuleError::KeyLength(_))));
        assert_eq!(parse(&["label:a"; 5]), Err(RuleError::TooManyKeys));
    }
}
