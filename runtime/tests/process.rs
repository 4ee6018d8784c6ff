//! The process metrics, in a process whose descriptors nobody else opens and closes.

use std::fs::File;

use heddle_runtime::process::register;
use prometheus::{Registry, TextEncoder};

#[test]
fn tells_the_truth_about_this_process() {
    let value = |registry: &Registry, name: &str| -> f64 {
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let line = text.lines().find(|l| l.split(' ').next() == Some(name)).unwrap_or_else(|| panic!("{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let registry = Registry::new();
    register(&registry).unwrap();
    let fds = value(&registry, "process_open_fds");
    let files: Vec<_> = (0..200).map(|_| File::open("/dev/null").unwrap()).collect();
    assert_eq!(value(&registry, "process_open_fds"), fds + 200.0);
    drop(files);
    assert!(value(&registry, "process_max_fds") >= fds);
    let resident = value(&registry, "process_resident_memory_bytes");
    assert!((1e5..1e11).contains(&resident), "{resident}");
    assert!(value(&registry, "process_virtual_memory_bytes") >= resident);
    assert!(value(&registry, "process_threads") >= 1.0);
    assert!(value(&registry, "process_start_time_seconds") > 1.7e9);
    let before = value(&registry, "process_cpu_seconds_total");
    let mut n = 0u64;
    while value(&registry, "process_cpu_seconds_total") - before < 0.01 {
        n = std::hint::black_box(n + 1);
    }
}
