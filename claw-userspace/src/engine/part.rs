//! The part of a finding that is one tenant's at one site.

use crate::{
    ledger::{Process, Site},
    report::{model, site::describe},
    tenant,
};

/// Share from which on a part is all of it.
pub const ALL: f64 = 0.95;

/// `share` (0 to 1) of `whole`, whose site and tenant were not known. `subject`
/// tells it from other findings of this tenant.
pub fn of(
    whole: &model::Finding,
    process: &Process,
    tenant: Option<&String>,
    site: &Site,
    subject: &str,
    share: f64,
) -> model::Finding {
    let tenant = tenant.or(process.info.default_tenant.as_ref());
    let tenant = tenant.map_or(tenant::NONE, String::as_str).to_owned();
    let mut f = whole.clone();
    f.id = model::finding_id(&process.info.name, f.kind, &tenant, subject);
    f.tenant = tenant;
    f.site = describe(site);
    if share < ALL {
        let part = |v: Option<f64>| v.map(|v| v * share);
        f.growth = model::Growth {
            percent_per_minute: part(f.growth.percent_per_minute),
            bytes_per_minute: part(f.growth.bytes_per_minute),
            count_per_minute: part(f.growth.count_per_minute),
            interval95: f.growth.interval95.map(|i| i.map(|v| v * share)),
        };
        // Whose the older ones are is not known.
        (f.live.bytes, f.live.objects) = (None, None);
    }
    f
}
