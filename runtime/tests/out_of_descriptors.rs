//! A listener that runs out of file descriptors pauses and does not spin. In a process of its own,
//! because the limit is the process's.

use std::{fs::File, net::TcpStream, time::Duration};

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};
use tokio::{
    net::TcpListener,
    time::{Instant, timeout},
};

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[tokio::test]
async fn accepting_pauses_until_there_are_descriptors_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = TcpStream::connect(address).unwrap();
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: getrlimit(Resource::Nofile).maximum }).unwrap();
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }

    let before = processor_time();
    let pause = Duration::from_millis(600);
    let accepted = timeout(pause, heddle_runtime::accept::accept(&listener)).await;
    assert!(accepted.is_err(), "there was no descriptor for it");
    let spent = processor_time() - before;
    assert!(spent < pause / 6, "{spent:?} of processor time in {pause:?}: it spins");

    let accepting = tokio::spawn(async move { heddle_runtime::accept::accept(&listener).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(files);
    let freed = Instant::now();
    let (_, peer) = timeout(Duration::from_secs(10), accepting).await.unwrap().unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
    assert!(freed.elapsed() < Duration::from_secs(2));
}
