//! Heddle in a real Kubernetes cluster: installed by what `heddle install` prints, with images of this workspace's
//! programs. Root only. `cargo test -p heddle-tests --test cluster [-- NAME...]` runs all steps, or those whose names
//! contain one of these; the first two always. HEDDLE_CLUSTER=keep uses a cluster that is up, and leaves it up.

mod attestation;
mod audit;
mod install;
mod restarts;
mod shop;
mod tracing;
mod traffic;
mod workloads;
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::SystemTime,
};

use self::world::World;

/// A step: later ones build upon earlier ones.
struct Step {
    name: &'static str,
    run: fn(&mut World),
}

const STEPS: &[Step] = &[
    Step { name: "install", run: install::installs },
    Step { name: "install_again", run: install::again_changes_nothing },
    Step { name: "token_of_a_pod", run: attestation::a_pods_token_is_its_identity },
    Step { name: "token_of_another_kind", run: attestation::any_other_token_gets_nothing },
    Step { name: "token_without_api_server", run: attestation::without_the_api_server_renewals_go_on },
    Step { name: "jaeger", run: tracing::jaeger_starts },
    Step { name: "shop", run: shop::sells },
    Step { name: "plaintext", run: traffic::nobody_reads_along },
    Step { name: "strangers", run: traffic::strangers_are_told_why },
    Step { name: "trace", run: tracing::jaeger_shows_the_order },
    Step { name: "jobs", run: workloads::jobs_end },
    Step { name: "stateful", run: workloads::a_stateful_pod_is_reached_by_name },
    Step { name: "probes", run: workloads::probes_hold_under_default_deny },
    Step { name: "rollouts", run: restarts::rollouts_lose_nothing },
    Step { name: "control_plane_away", run: restarts::without_the_control_plane_nothing_is_lost },
    Step { name: "proxy_killed", run: restarts::a_killed_proxy_comes_back },
    Step { name: "rights", run: audit::every_right_is_used },
    Step { name: "uninstall", run: install::uninstalls },
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let Some(mut world) = World::start() else { return ExitCode::SUCCESS };
    let mut failed = Vec::new();
    for (index, step) in STEPS.iter().enumerate() {
        if index > 0 && !wanted.is_empty() && !wanted.iter().any(|part| step.name.contains(part.as_str())) {
            continue;
        }
        let begin = SystemTime::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (step.run)(&mut world)));
        let seconds = begin.elapsed().unwrap_or_default().as_secs_f32();
        println!("cluster: {} ... {} ({seconds:.1} s)", step.name, if outcome.is_ok() { "ok" } else { "FAILED" });
        if outcome.is_err() {
            world.show();
            failed.push(step.name);
            if index == 0 {
                break;
            }
        }
    }
    println!("cluster: {}", if failed.is_empty() { "all ok".to_owned() } else { format!("failed: {failed:?}") });
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
