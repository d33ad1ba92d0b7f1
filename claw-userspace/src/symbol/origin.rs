//! Whose code a Go function is, by its package path, and a Python one, by its
//! file.

use super::Origin;
use crate::target::go::buildinfo::BuildInfo;

/// Packages under `runtime/` that are libraries, not the runtime itself.
const LIBRARIES: [&str; 5] =
    ["runtime/pprof", "runtime/debug", "runtime/trace", "runtime/metrics", "runtime/coverage"];

/// Package path of a function name: everything before the first dot after the
/// last slash, type arguments left aside. The linker escapes dots in the last
/// element as `%2e`.
fn package(function: &str) -> &str {
    let name = function.split('[').next().unwrap_or(function);
    let slash = name.rfind('/').map_or(0, |i| i + 1);
    let dot = name.get(slash..).and_then(|n| n.find('.')).map_or(name.len(), |i| slash + i);
    name.get(..dot).unwrap_or(name)
}

fn within(package: &str, module: &str) -> bool {
    !module.is_empty()
        && package.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub fn origin(function: &str, build: &BuildInfo) -> Origin {
    if function.is_empty() {
        return Origin::Unknown;
    }
    let escaped = package(function);
    if is_stub(function, escaped) {
        return Origin::Native;
    }
    let plain = escaped.replace("%2e", ".");
    let package = plain.as_str();
    if LIBRARIES.iter().any(|l| within(package, l)) {
        return Origin::Std;
    }
    if ["runtime", "internal/runtime"].iter().any(|r| within(package, r))
        || package.starts_with("type:")
        || package.starts_with("go:")
    {
        return Origin::Runtime;
    }
    if package == "main" || within(package, &build.main_module) || within(package, &build.path) {
        return Origin::Main;
    }
    if package.split('/').next().is_some_and(|first| first.contains('.'))
        || build.dependencies.iter().any(|d| within(package, d))
    {
        return Origin::Dependency;
    }
    if function.starts_with("_cgo") || function.starts_with("x_cgo") {
        return Origin::Native;
    }
    Origin::Std
}

/// Written by cgo into the package that calls C (`cmd/cgo/out.go`): nobody can
/// change it, and its file is not there to look at.
fn is_stub(function: &str, package: &str) -> bool {
    let name = function.get(package.len()..).and_then(|n| n.strip_prefix('.'));
    name.is_some_and(|n| ["_Cfunc_", "_Cmacro_", "_cgo"].iter().any(|stub| n.starts_with(stub)))
}

/// Whose code a file is, by where Python installs what.
pub fn of_python_file(file: &str) -> Origin {
    if file.contains("/site-packages/") || file.contains("/dist-packages/") {
        return Origin::Dependency;
    }
    let version = |c: char| c == '.' || c.is_ascii_digit();
    let library = file.split("/lib/python3").nth(1);
    let library = library.is_some_and(|rest| rest.trim_start_matches(version).starts_with('/'));
    if library || file.starts_with("<frozen ") { Origin::Std } else { Origin::Main }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_tell_whose_code_it_is() {
        let build = BuildInfo {
            path: "shop/cmd/server".into(),
            main_module: "shop".into(),
            dependencies: vec!["gopkg.in/yaml.v3".into(), "corp".into()],
            ..BuildInfo::default()
        };
        for (function, want) in [
            ("runtime.mallocgc", Origin::Runtime),
            ("internal/runtime/maps.(*Map).PutSlot", Origin::Runtime),
            ("type:.eq.main.Key", Origin::Runtime),
            ("runtime/pprof.Do", Origin::Std),
            ("encoding/json.Unmarshal", Origin::Std),
            ("vendor/golang.org/x/net/http2/hpack.(*Encoder).Write", Origin::Std),
            ("main.main.func1", Origin::Main),
            ("shop/middleware.(*Auth).Wrap.func1", Origin::Main),
            ("shopping.Do", Origin::Std),
            ("github.com/x/y.(*T).M", Origin::Dependency),
            ("gopkg.in/yaml%2ev3.Unmarshal", Origin::Dependency),
            ("corp/cache.New[go.shape.string]", Origin::Dependency),
            ("main.Map[go.shape.struct { a/b.c int }]", Origin::Main),
            ("main._Cfunc_wait_for_ever", Origin::Native),
            ("github.com/x/y._cgoexp_1234_callback", Origin::Native),
            ("main._Customer", Origin::Main),
            ("", Origin::Unknown),
        ] {
            assert_eq!(origin(function, &build), want, "{function}");
        }
    }

    #[test]
    fn files_of_the_library_and_of_the_service() {
        assert_eq!(of_python_file("/usr/lib/python3.11/asyncio/events.py"), Origin::Std);
        assert_eq!(of_python_file("<frozen importlib._bootstrap>"), Origin::Std);
        assert_eq!(
            of_python_file("/usr/lib/python3/dist-packages/flask/app.py"),
            Origin::Dependency
        );
        assert_eq!(
            of_python_file("/v/lib/python3.12/site-packages/flask/app.py"),
            Origin::Dependency
        );
        assert_eq!(of_python_file("/app/service.py"), Origin::Main);
        assert_eq!(of_python_file("/srv/lib/python3-app/x.py"), Origin::Main);
    }
}
