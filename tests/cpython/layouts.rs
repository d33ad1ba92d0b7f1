//! The table of struct offsets against the C headers of every Python that has
//! them installed.

use std::{path::Path, process::Command};

use claw_ebpf::target::cpython::{
    layout::{self, Layout},
    running::{Lines, Locals, MAIN, Running, Suspended, Thread},
};

use crate::pythons::{all, headers};

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

/// The interpreter's own headers, which the window's offsets are of.
const INTERNAL: &str = r#"
#define Py_BUILD_CORE 1
#include <Python.h>
#include <stddef.h>
#include <stdio.h>
#if PY_VERSION_HEX >= 0x03090000
#include "internal/pycore_runtime.h"
#include "internal/pycore_interp.h"
#endif
#include "internal/pycore_gil.h"
#include "internal/pycore_pystate.h"
#include "internal/pycore_context.h"
#if PY_VERSION_HEX >= 0x030e0000
#include "internal/pycore_frame.h"
#include "internal/pycore_genobject.h"
#include "internal/pycore_interpframe.h"
#if PY_VERSION_HEX >= 0x030f0000
#define FRAME_COMPLETED FRAME_CLEARED
#endif
#elif PY_VERSION_HEX >= 0x030b0000
#include "internal/pycore_frame.h"
#else
#include <frameobject.h>
#endif
#define P(x) printf("%zu ", (size_t)(x))
int main(void) {
    P(offsetof(PyTypeObject, tp_itemsize));
    P(offsetof(PyContextVar, var_name)); P(offsetof(PyContextVar, var_hash));
    P(offsetof(PyBytesObject, ob_sval)); P(offsetof(PyTupleObject, ob_item));
    P(offsetof(PyCellObject, ob_ref)); P(offsetof(PyContext, ctx_vars));
    P(offsetof(PyThreadState, interp)); P(offsetof(PyThreadState, context));
    P(offsetof(PyCodeObject, co_firstlineno)); P(offsetof(PyCodeObject, co_filename));
#if PY_VERSION_HEX < 0x030c0000
    P(offsetof(_PyRuntimeState, gilstate.tstate_current));
#else
    P(offsetof(_PyRuntimeState, interpreters.main) - offsetof(_PyRuntimeState, interpreters.head));
    P(offsetof(PyInterpreterState, ceval.gil));
    P(offsetof(struct _gil_runtime_state, last_holder));
#endif
#if PY_VERSION_HEX < 0x030b0000
    P(offsetof(PyThreadState, frame)); P(offsetof(PyFrameObject, f_back));
    P(offsetof(PyFrameObject, f_code)); P(offsetof(PyFrameObject, f_lasti));
    P(offsetof(PyFrameObject, f_localsplus)); P(offsetof(PyCodeObject, co_name));
    P(offsetof(PyCodeObject, co_nlocals)); P(offsetof(PyCodeObject, co_varnames));
    P(offsetof(PyCodeObject, co_cellvars)); P(offsetof(PyCodeObject, co_freevars));
#if PY_VERSION_HEX < 0x030a0000
    P(offsetof(PyCodeObject, co_lnotab));
#else
    P(offsetof(PyCodeObject, co_linetable));
#endif
#else
#if PY_VERSION_HEX < 0x030d0000
    P(offsetof(PyThreadState, cframe)); P(offsetof(_PyCFrame, current_frame));
    P(offsetof(_PyInterpreterFrame, f_code)); P(offsetof(_PyInterpreterFrame, prev_instr));
#else
    P(offsetof(PyThreadState, current_frame));
    P(offsetof(_PyInterpreterFrame, f_executable)); P(offsetof(_PyInterpreterFrame, instr_ptr));
#endif
    P(offsetof(_PyInterpreterFrame, previous)); P(offsetof(_PyInterpreterFrame, owner));
    P(offsetof(_PyInterpreterFrame, localsplus)); P(offsetof(PyCodeObject, co_qualname));
    P(offsetof(PyCodeObject, co_localsplusnames)); P(offsetof(PyCodeObject, co_localspluskinds));
    P(offsetof(PyCodeObject, co_linetable)); P(offsetof(PyCodeObject, co_code_adaptive));
#endif
    P(offsetof(PyThreadState, thread_id)); P(offsetof(PyThreadState, id));
#if PY_VERSION_HEX < 0x030b0000
    P(offsetof(PyGenObject, gi_frame)); P(offsetof(PyFrameObject, f_valuestack));
#if PY_VERSION_HEX < 0x030a0000
    P(offsetof(PyFrameObject, f_stacktop));
#else
    P(offsetof(PyFrameObject, f_stackdepth));
#endif
#else
    P(offsetof(PyThreadState, native_thread_id)); P(offsetof(PyGenObject, gi_iframe));
    P(offsetof(PyGenObject, gi_frame_state));
#if PY_VERSION_HEX >= 0x030e0000
    P(offsetof(_PyInterpreterFrame, stackpointer)); P(FRAME_COMPLETED);
#else
    P(offsetof(_PyInterpreterFrame, stacktop));
    P(FRAME_EXECUTING); P(FRAME_COMPLETED);
#endif
#endif
    return 0;
}
"#;

/// What `INTERNAL` prints, as the tables have it.
fn internal(minor: u8) -> Vec<u64> {
    let r = Running::of(minor).unwrap();
    let items = Layout::of(minor).unwrap().tuple_items;
    let mut all = vec![layout::TP_ITEMSIZE, layout::CV_NAME, layout::CV_HASH, 32, items, 16, 24];
    all.extend([r.ts_interp, r.ts_context.into(), r.co_first_line, r.co_file]);
    match r.thread {
        Thread::Current(at) => all.push(at),
        Thread::Holder { gil, last_holder } => all.extend([MAIN, gil, last_holder]),
    }
    all.push(r.ts_frame.into());
    all.extend(r.cframe_frame.map(u64::from));
    match (r.lines, r.locals) {
        (
            Lines::Lnotab(table) | Lines::Table310(table),
            Locals::Separate { count, names, cells, free },
        ) => {
            all.extend([r.f_previous, r.f_code, r.f_instruction, r.f_locals].map(u64::from));
            all.extend([r.co_name, count, names, cells, free, table]);
        }
        (Lines::Locations { table, code }, Locals::Together { names, kinds }) => {
            all.extend([r.f_code, r.f_instruction, r.f_previous].map(u64::from));
            all.extend([r.f_owner.unwrap(), r.f_locals].map(u64::from));
            all.extend([r.co_name, names, kinds, table, code]);
        }
        other => panic!("{other:?}"),
    }
    all.extend([r.ts_thread, r.ts_id].map(u64::from));
    match r.suspended {
        Suspended::Pointer { frame, top } => all.extend([frame, 64, top]),
        Suspended::Depth { frame, stack, depth } => all.extend([frame, stack, depth]),
        Suspended::Within { frame, state, top } => {
            all.extend([r.ts_native.unwrap().into(), frame, state, top, 0, 1]);
        }
        Suspended::Stacked { frame, state, over, pointer, .. } => {
            let over = u64::try_from(over).unwrap();
            all.extend([r.ts_native.unwrap().into(), frame, state, pointer, over]);
        }
    }
    all
}

#[test]
fn offsets_are_those_of_the_headers() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("offsets.c");
    std::fs::write(&source, PROGRAM).unwrap();
    let internals = dir.path().join("internals.c");
    std::fs::write(&internals, INTERNAL).unwrap();
    let mut checked = 0;
    for python in all() {
        let Some(include) = headers(&python) else { continue };
        let program = dir.path().join("offsets");
        compile(&include, &source, &program);
        let said = numbers(&program);
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
        compile(&include, &internals, &program);
        assert_eq!(numbers(&program), internal(l.minor), "{}", python.display());
        checked += 1;
    }
    if checked == 0 {
        eprintln!("skipped: no Python has its headers installed");
    }
}

pub fn compile(include: &str, source: &Path, program: &Path) {
    let built = Command::new("cc")
        // Debian's `pyconfig.h` includes that of the architecture from there.
        .args([format!("-I{include}"), format!("-I{include}/..")])
        .args([source.as_os_str(), "-w".as_ref(), "-o".as_ref()])
        .arg(program)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{include}: {errors}");
}

pub fn numbers(program: &Path) -> Vec<u64> {
    let out = Command::new(program).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    text.split_whitespace().map(|n| n.parse().unwrap()).collect()
}
