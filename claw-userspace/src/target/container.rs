//! The container a process runs in, from its cgroup path and the state files
//! of runtimes on this machine. No daemon is asked.

use std::{fs, path::Path};

use crate::stream::Container;

/// Longest state file read.
const MAX_STATE: u64 = 4 << 20;

/// Annotations that name the image, as CRI, CRI-O, OCI tools and buildah set
/// them.
const IMAGE_KEYS: [&str; 4] = [
    "io.kubernetes.cri.image-name",
    "io.kubernetes.cri-o.ImageName",
    "org.opencontainers.image.ref.name",
    "io.buildah.image",
];

/// Container id and pod of a cgroup path (v1 or v2), as docker, containerd,
/// CRI-O, podman and runc name them.
pub fn from_cgroup(cgroup: &str) -> Option<Container> {
    cgroup.lines().filter_map(|l| l.splitn(3, ':').nth(2)).find_map(|path| {
        let id = path.rsplit('/').find_map(id_of_element)?;
        Some(Container { id, image: None, pod_uid: pod_uid(path) })
    })
}

/// A 64-digit hex name, bare or as `docker-<id>.scope`, `cri-containerd-…`,
/// `crio-…`, `libpod-…`.
fn id_of_element(element: &str) -> Option<String> {
    let name = element.strip_suffix(".scope").unwrap_or(element);
    let id = name.rsplit(['-', ':']).next()?;
    (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

/// `…/pod<uid>/…` or systemd's `…-pod<uid with underscores>.slice`.
fn pod_uid(path: &str) -> Option<String> {
    path.split('/').find_map(|element| {
        let name = element.strip_suffix(".slice").unwrap_or(element);
        let uid = name.get(name.rfind("pod")? + 3..)?.replace('_', "-");
        (uid.len() == 36 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')).then_some(uid)
    })
}

/// The container of a process, with its image where a runtime's state files
/// tell. `name_hint` is the last element of the cgroup path, under which runc
/// keeps containers that were named by hand.
pub fn of_process(cgroup: &str, namespaced: bool) -> Option<Container> {
    let mut container = from_cgroup(cgroup).or_else(|| {
        let named = cgroup
            .lines()
            .filter_map(|l| l.splitn(3, ':').nth(2)?.rsplit('/').next())
            .find(|name| !name.is_empty() && runc_state(Path::new("/run/runc"), name).is_some());
        let id = match named {
            Some(name) => name.to_owned(),
            None if namespaced => "(namespaced, id unknown)".to_owned(),
            None => return None,
        };
        Some(Container { id, image: None, pod_uid: None })
    })?;
    container.image = image(Path::new("/"), &container.id);
    Some(container)
}

fn read_json(path: &Path) -> Option<serde_json::Value> {
    let size = fs::metadata(path).ok()?.len();
    if size > MAX_STATE {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn runc_state(root: &Path, id: &str) -> Option<serde_json::Value> {
    // An id comes from the kernel, but a name may hold anything.
    if id.contains('/') || id == ".." {
        return None;
    }
    read_json(&root.join(id).join("state.json"))
}

/// Image name from what container runtimes leave below `root`.
fn image(root: &Path, id: &str) -> Option<String> {
    let docker = root.join("var/lib/docker/containers").join(id).join("config.v2.json");
    if let Some(name) =
        read_json(&docker).and_then(|j| Some(j.pointer("/Config/Image")?.as_str()?.to_owned()))
    {
        return Some(name);
    }
    let mut bundles = Vec::new();
    let mut annotations = Vec::new();
    for base in ["run/runc", "run/containerd/runc/k8s.io", "run/containerd/runc/default"] {
        let state = runc_state(&root.join(base), id);
        let labels = state.as_ref().and_then(|s| s.pointer("/config/labels")?.as_array().cloned());
        for label in labels.into_iter().flatten() {
            // runc keeps the bundle's annotations beside its path.
            let Some((key, value)) = label.as_str().and_then(|l| l.split_once('=')) else {
                continue;
            };
            if key == "bundle" {
                bundles.push(root.join(value.trim_start_matches('/')));
            } else {
                annotations.push((key.to_owned(), value.to_owned()));
            }
        }
    }
    for namespace in ["k8s.io", "default", "moby"] {
        let task = root.join("run/containerd/io.containerd.runtime.v2.task").join(namespace);
        bundles.push(task.join(id));
    }
    let kept = IMAGE_KEYS.iter().find_map(|key| annotations.iter().find(|(k, _)| k == key));
    if let Some((_, name)) = kept {
        return Some(name.clone());
    }
    bundles.iter().find_map(|bundle| {
        let config = read_json(&bundle.join("config.json"))?;
        let annotations = config.get("annotations")?;
        IMAGE_KEYS.iter().find_map(|key| Some(annotations.get(key)?.as_str()?.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f29c8b2a4d1e6f7980011223344556677889900aabbccddeeff001122334455";

    #[test]
    fn ids_as_runtimes_name_them() {
        for path in [
            format!("0::/system.slice/docker-{ID}.scope"),
            format!("12:memory:/docker/{ID}"),
            format!("0::/kubepods/besteffort/pod0f1d2c3b-aaaa-bbbb-cccc-0123456789ab/{ID}"),
            format!(
                "0::/kubepods.slice/kubepods-pod0f1d2c3b_aaaa_bbbb_cccc_0123456789ab.slice/\
                 cri-containerd-{ID}.scope"
            ),
            format!("0::/machine.slice/libpod-{ID}.scope/container"),
            format!("0::/system.slice/containerd.service/kubepods:cri-containerd:{ID}"),
        ] {
            let c = from_cgroup(&path).unwrap();
            assert_eq!(c.id, ID, "{path}");
            let pod = path.contains("pod0f1d").then_some("0f1d2c3b-aaaa-bbbb-cccc-0123456789ab");
            assert_eq!(c.pod_uid.as_deref(), pod, "{path}");
        }
        assert_eq!(from_cgroup("0::/user.slice/session-1.scope"), None);
        assert_eq!(from_cgroup("garbage"), None);
    }

    #[test]
    fn images_from_state_files() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: String| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("run/runc/web/state.json", r#"{"config":{"labels":["bundle=/b/web"]}}"#.into());
        put(
            "b/web/config.json",
            r#"{"annotations":{"org.opencontainers.image.ref.name":"shop:1.2"}}"#.into(),
        );
        assert_eq!(image(root.path(), "web").as_deref(), Some("shop:1.2"));
        put(
            &format!("var/lib/docker/containers/{ID}/config.v2.json"),
            r#"{"Config":{"Image":"acme/api:7"}}"#.into(),
        );
        assert_eq!(image(root.path(), ID).as_deref(), Some("acme/api:7"));
        // The bundle may lie where only the runtime sees it.
        let labels = r#"["bundle=/gone","io.kubernetes.cri.image-name=api:3"]"#;
        put("run/runc/cri/state.json", format!(r#"{{"config":{{"labels":{labels}}}}}"#));
        assert_eq!(image(root.path(), "cri").as_deref(), Some("api:3"));
        put("run/runc/bad/state.json", "{".into());
        assert_eq!(image(root.path(), "bad"), None);
        assert_eq!(image(root.path(), "../.."), None);
    }
}
