//! Whose a process is as a whole: its container, and the tenant of everything
//! in it that no label names.

use crate::{
    report::clean::clean,
    stream::Container,
    target::{container, process::Process},
    tenant::{Rule, Rules},
};

pub struct Owner {
    pub container: Option<Container>,
    /// Cleaned; `None` when no rule gives one.
    pub tenant: Option<String>,
    /// The rules that look inside the process and come before that one.
    pub inside: Vec<(u8, Rule)>,
    /// How many label rules come before the one that gave the tenant.
    pub labels_before: u8,
}

impl Owner {
    pub fn of(process: &Process, rules: &Rules) -> Self {
        let cgroup = process.cgroup().unwrap_or_default();
        let container = container::of_process(&cgroup, process.namespaced());
        let of_process = |rule: &Rule| match rule {
            Rule::Label(_) | Rule::ContextVar(_) | Rule::Local(_) | Rule::ThreadName => None,
            Rule::Env(variable) => process.env(variable),
            Rule::Cgroup => {
                let path = || cgroup.lines().find_map(|l| l.splitn(3, ':').nth(2));
                container.as_ref().map(|c| c.id.clone()).or_else(|| path().map(str::to_owned))
            }
        };
        let inside = rules.inside(of_process);
        let (tenant, labels_before) = match rules.of_process(of_process) {
            Some((tenant, before)) => (Some(clean(&tenant)), before),
            None => (None, 0),
        };
        Self { container, tenant, inside, labels_before }
    }
}
