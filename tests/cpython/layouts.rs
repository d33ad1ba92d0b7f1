//! The table of struct offsets against the C headers of every Python that has
//! them installed.

use std::process::Command;

use claw_ebpf::target::cpython::layout::{self, Layout};

use crate::pythons::all;

const PROGRAM: &str = r#"
#include <Python.h>
#include <stddef.h>
#include <stdio.h>
#if PY_VERSION_HEX >= 0x030b0000
#define MANAGED_DICT Py_TPFLAGS_MANAGED_DICT
#else
#define MANAGED_DICT 0ul
#endif
int main(void) {
    printf("%d %zu %zu %zu %zu %zu %zu %zu %zu %zu %zu %zu %zu %zu %zu %lu\n", PY_MINOR_VERSION,
        offsetof(PyObject, ob_type), offsetof(PyVarObject, ob_size),
        offsetof(PyTypeObject, tp_name), offsetof(PyTypeObject, tp_flags),
        offsetof(PyTypeObject, tp_dict), offsetof(PyHeapTypeObject, ht_qualname),
        offsetof(PyASCIIObject, length), offsetof(PyASCIIObject, state),
        sizeof(PyASCIIObject), sizeof(PyCompactUnicodeObject),
        offsetof(PyDictObject, ma_used), offsetof(PyDictObject, ma_keys),
        offsetof(PySetObject, used), sizeof(void *), MANAGED_DICT);
    return 0;
}
"#;

#[test]
fn offsets_are_those_of_the_headers() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("offsets.c");
    std::fs::write(&source, PROGRAM).unwrap();
    let mut checked = 0;
    for python in all() {
        let code = "import sysconfig; print(sysconfig.get_path('include'))";
        let out = Command::new(&python).args(["-c", code]).output().unwrap();
        let include = String::from_utf8(out.stdout).unwrap().trim().to_owned();
        if !std::path::Path::new(&include).join("Python.h").is_file() {
            eprintln!("skipped: {} has no headers in {include}", python.display());
            continue;
        }
        let program = dir.path().join("offsets");
        let built = Command::new("cc")
            .args([format!("-I{include}").as_ref(), source.as_os_str(), "-o".as_ref()])
            .arg(&program)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{}: {errors}", python.display());
        let out = Command::new(&program).output().unwrap();
        let said: Vec<u64> = String::from_utf8(out.stdout)
            .unwrap()
            .split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect();
        let l = Layout::of(u8::try_from(said[0]).unwrap()).unwrap();
        let managed = l.pre_header & layout::flags::MANAGED_DICT;
        let table = [
            u64::from(l.minor),
            layout::OB_TYPE,
            layout::OB_SIZE,
            layout::TP_NAME,
            layout::TP_FLAGS,
            layout::TP_DICT,
            l.ht_qualname,
            layout::STR_LENGTH,
            layout::STR_STATE,
            l.ascii_size,
            l.compact_size,
            layout::MA_USED,
            layout::MA_KEYS,
            layout::SET_USED,
            8,
            managed,
        ];
        assert_eq!(said, table, "{}", python.display());
        checked += 1;
    }
    if checked == 0 {
        eprintln!("skipped: no Python has its headers installed");
    }
}
