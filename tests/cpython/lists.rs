//! Offsets that the way to a holder leads over, against the C headers.

use claw_ebpf::target::cpython::{
    layout::{self, Layout},
    threads::Offsets,
};

use crate::{
    layouts::{compile, numbers},
    pythons::{all, headers},
};

const PROGRAM: &str = r#"
#define Py_BUILD_CORE 1
#include <Python.h>
#include <stddef.h>
#include <stdio.h>
#if PY_VERSION_HEX >= 0x03090000
#include "internal/pycore_runtime.h"
#include "internal/pycore_interp.h"
#endif
#include "internal/pycore_pystate.h"
#define P(x) printf("%zu ", (size_t)(x))
int main(void) {
    P(PY_MINOR_VERSION);
    P(offsetof(PyTypeObject, tp_basicsize)); P(offsetof(PyTypeObject, tp_members));
    P(offsetof(PyTypeObject, tp_base)); P(offsetof(PyTypeObject, tp_dictoffset));
    P(offsetof(PyDictObject, ma_values)); P(offsetof(PySetObject, mask));
    P(offsetof(PySetObject, table)); P(offsetof(PyListObject, ob_item));
    P(offsetof(PyWeakReference, wr_callback)); P(offsetof(PyHeapTypeObject, ht_cached_keys));
    P(offsetof(PyFunctionObject, func_code)); P(offsetof(PyFunctionObject, func_closure));
    P(offsetof(PyFunctionObject, func_defaults)); P(offsetof(PyFunctionObject, func_kwdefaults));
    P(offsetof(_PyRuntimeState, interpreters.head)); P(offsetof(PyInterpreterState, next));
#if PY_VERSION_HEX < 0x030b0000
    P(offsetof(PyInterpreterState, tstate_head));
#else
    P(offsetof(PyInterpreterState, threads.head));
#endif
#if PY_VERSION_HEX < 0x03090000
    P(offsetof(_PyRuntimeState, gc));
#else
    P(offsetof(PyInterpreterState, gc));
#endif
    P(offsetof(PyThreadState, next));
    P(offsetof(struct _gc_runtime_state, enabled));
    P(offsetof(struct _gc_runtime_state, collecting));
    return 0;
}
"#;

#[test]
fn offsets_to_holders_are_those_of_the_headers() {
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("lists.c"), dir.path().join("lists"));
    std::fs::write(&source, PROGRAM).unwrap();
    let mut checked = 0;
    for python in all() {
        let Some(include) = headers(&python) else { continue };
        compile(&include, &source, &program);
        let said = numbers(&program);
        let minor = u8::try_from(said[0]).unwrap();
        let l = Layout::of(minor).unwrap();
        let mut table = vec![
            u64::from(minor),
            layout::TP_BASICSIZE,
            layout::TP_MEMBERS,
            layout::TP_BASE,
            layout::TP_DICTOFFSET,
            layout::MA_VALUES,
            layout::SET_MASK,
            layout::SET_TABLE,
            layout::LIST_ITEMS,
            layout::WEAK_CALLBACK,
            l.ht_cached_keys,
            l.func_code,
            l.func_closure,
            l.func_closure - 16,
            l.func_closure - 8,
        ];
        // From 3.13 on they are read from the process.
        if let Some(o) = Offsets::known(minor) {
            table.extend([o.interpreters, o.next_interpreter, o.threads, o.gc, o.next_thread]);
            table.extend([o.gc_enabled, o.gc_collecting]);
        }
        assert_eq!(said[..table.len()], table, "{}", python.display());
        checked += 1;
    }
    if checked == 0 {
        eprintln!("skipped: no Python has its headers installed");
    }
}
