use claw_ebpf::{
    probe::Plan,
    target::go::{binary::GoBinary, variables::*},
};
fn main() {
    for p in std::env::args().skip(1) {
        let t = std::time::Instant::now();
        match GoBinary::open(p.as_ref()) {
            Ok(b) => {
                let el = t.elapsed();
                let plan = Plan::sampled(&b);
                println!(
                    "{p}: {:?} {} pie={} stripped={} cgo={} mod={:?}",
                    el,
                    b.version.raw,
                    b.elf().pie,
                    b.stripped(),
                    b.cgo(),
                    b.build.main_module
                );
                for pt in &plan.points {
                    print!("  {:?}@{}+{:x}", pt.program, pt.function, pt.file_offset);
                }
                println!("\n  blocked {:?}", plan.blocked);
                println!(
                    "  rate {:?}/{:?} mbuckets {:?}/{:?}",
                    MEM_PROFILE_RATE.find(&b),
                    MEM_PROFILE_RATE.by_pattern(&b),
                    MBUCKETS.find(&b),
                    MBUCKETS.by_pattern(&b)
                );
                let l = b.find(&["main.leak", "main.main.func1"]).unwrap();
                if let Some(Some(r)) = l.get(1) {
                    for pc in (r.entry..r.end).step_by(40).take(6) {
                        print!(
                            " [{}]",
                            b.calls(pc)
                                .iter()
                                .map(|c| format!(
                                    "{}:{}:{}:{}{}",
                                    c.function,
                                    c.file.rsplit('/').next().unwrap(),
                                    c.line,
                                    c.start_line,
                                    if c.inlined { "(i)" } else { "" }
                                ))
                                .collect::<Vec<_>>()
                                .join(" < ")
                        );
                    }
                    println!();
                }
            }
            Err(e) => println!("{p}: ERR {e}"),
        }
    }
}
