//! curl and nginx.

use std::{fs, path::Path, process::Command};

use heddle_tests::{peer, process::succeed};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    nginx::Nginx,
    world::{Service, World},
};

/// Both versions of HTTP: curl's flag, and the service that speaks it.
const VERSIONS: [(&str, &str); 2] = [("--http1.1", "files"), ("--http2-prior-knowledge", "files2")];

struct Files {
    world: World,
    nginx: Nginx,
}

impl Files {
    /// nginx behind a pair of proxies; `None` where a program is missing.
    async fn start() -> Option<Self> {
        peer::find("curl")?;
        let nginx = Nginx::start().await?;
        let services = [Service::new("files", "http", nginx.http1), Service::new("files2", "http", nginx.http2)];
        Some(Self { world: World::start(&services).await, nginx })
    }

    /// Runs curl; `URL` in an argument is where the service is called.
    async fn curl(&self, version: &str, service: &str, arguments: &[&str]) -> String {
        let mut command = Command::new("curl");
        let url = format!("http://{}", self.world.upstream(service));
        command.args(["--silent", "--show-error", "--fail-with-body", "--max-time", "60", version]);
        command.args(arguments.iter().map(|argument| argument.replace("URL", &url)));
        succeed(command).await
    }

    /// A folder for what curl gets.
    fn folder(&self) -> &Path {
        self.world.folder()
    }
}

/// Bytes that no compression and no repetition hides an error in.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).take(length).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_up_and_down_unharmed() {
    let Some(files) = Files::start().await else { return };
    let sent = noise(10_000_019);
    let (source, got) = (files.folder().join("source"), files.folder().join("got"));
    fs::write(&source, &sent).expect("written");
    let (source, got) = (source.to_str().expect("text"), got.to_str().expect("text"));
    for (version, service) in VERSIONS {
        files.curl(version, service, &["--upload-file", source, "URL/up"]).await;
        assert!(fs::read(files.nginx.files.join("up")).expect("uploaded") == sent, "{version}: up");
        // Of unknown length: chunks, or frames without a length.
        let stream = ["--upload-file", ".", "--header", "content-length:", "URL/chunked"];
        let mut command = Command::new("bash");
        command.args(["-c", "exec \"$@\" < \"$0\"", source, "curl", "-sS", "--fail", version]);
        command
            .args(stream.map(|argument| argument.replace("URL", &format!("http://{}", files.world.upstream(service)))));
        succeed(command).await;
        assert!(fs::read(files.nginx.files.join("chunked")).expect("uploaded") == sent, "{version}: chunked");

        files.curl(version, service, &["--output", got, "URL/up"]).await;
        assert!(fs::read(got).expect("downloaded") == sent, "{version}: down");
        // A download that was broken off goes on where it was.
        fs::write(got, &sent[..1_234_567]).expect("written");
        files.curl(version, service, &["--output", got, "--continue-at", "-", "URL/up"]).await;
        assert!(fs::read(got).expect("downloaded") == sent, "{version}: resumed");
        files.curl(version, service, &["--output", got, "--range", "1000-1999", "URL/up"]).await;
        assert!(fs::read(got).expect("downloaded") == sent[1000..2000], "{version}: range");
        let limited = ["--limit-rate", "4M", "--output", got, "URL/up"];
        files.curl(version, service, &limited).await;
        assert!(fs::read(got).expect("downloaded") == sent, "{version}: slowly");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_without_a_body_are_as_the_app_made_them() {
    let Some(files) = Files::start().await else { return };
    fs::write(files.nginx.files.join("page"), noise(4321)).expect("written");
    let discard = ["--output", "/dev/null"];
    let told = ["--write-out", "%{http_code} %{size_download} %header{content-length};"];
    let requests: [(&[&str], &str); 5] = [
        (&["--head", "URL/page"], "200 0 4321;"),
        (&["URL/nothing"], "204 0 ;"),
        (&["--time-cond", "Fri, 01 Jan 2038 00:00:00 GMT", "URL/page"], "304 0 ;"),
        (&["--request", "DELETE", "URL/page"], "204 0 ;"),
        (&["--head", "URL/page", "--no-fail-with-body"], "404 0 153;"),
    ];
    for (version, service) in VERSIONS {
        fs::write(files.nginx.files.join("page"), noise(4321)).expect("written");
        for (request, expected) in requests {
            let text = files.curl(version, service, &[&discard[..], &told, request].concat()).await;
            assert_eq!(text, expected, "{version} {request:?}");
        }
    }
    // All over one connection: none leaves anything behind that the next could stumble over.
    fs::write(files.nginx.files.join("page"), noise(4321)).expect("written");
    let mut all = Vec::new();
    for (request, _) in requests {
        let told = ["--silent", "--write-out", "%{http_code} %{num_connects};"];
        all.extend([&discard[..], &told, request, &["--next"]].concat());
    }
    all.pop();
    let text = files.curl("--http1.1", "files", &all).await;
    assert_eq!(text, "200 1;204 0;304 0;204 0;404 0;");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_waits_for_the_apps_100() {
    let Some(files) = Files::start().await else { return };
    let source = files.folder().join("source");
    let sent = noise(3_000_000);
    fs::write(&source, &sent).expect("written");
    let source = source.to_str().expect("text");
    let expect = ["--verbose", "--stderr", "-", "--header", "expect: 100-continue", "--expect100-timeout", "30"];
    let arguments: Vec<&str> = expect.into_iter().chain(["--upload-file", source, "URL/expected"]).collect();
    let text = files.curl("--http1.1", "files", &arguments).await;
    assert!(text.contains("< HTTP/1.1 100 Continue"), "{text}");
    assert!(fs::read(files.nginx.files.join("expected")).expect("uploaded") == sent);

    // Refused by its length: the client is told at once, and sends nothing.
    let told =
        ["--no-fail-with-body", "--output", "/dev/null", "--write-out", "%{http_code} %{size_upload} %{time_total}"];
    let arguments = [&expect[3..], &told, &["--upload-file", source, "URL/small"]].concat();
    let text = files.curl("--http1.1", "files", &arguments).await;
    assert!(text.starts_with("413 0 0."), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_an_app_arrive() {
    let Some(files) = Files::start().await else { return };
    fs::write(files.nginx.files.join("summed"), noise(4321)).expect("written");
    let asked = ["--header", "te: trailers", "--dump-header", "-", "--output", "/dev/null", "URL/summed"];
    let text = files.curl("--http1.1", "files", &asked).await;
    assert!(text.contains("trailer: x-sum") && text.ends_with("x-sum: ok\r\n"), "{text}");
    // curl does not show those of HTTP/2.
    let Some(nghttp) = peer::find("nghttp") else { return };
    let mut command = Command::new(nghttp);
    command.args(["--verbose", "--null-out", &format!("http://{}/summed", files.world.upstream("files2"))]);
    let text = succeed(command).await;
    assert!(text.contains(") x-sum: ok"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept_though_the_app_ends_its_own() {
    let Some(files) = Files::start().await else { return };
    let mut arguments = vec!["--write-out", " %{http_code} %{num_connects}\n"];
    arguments.extend(vec!["URL/short"; 250]);
    let text = files.curl("--http1.1", "files", &arguments).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 250, "{text}");
    assert_eq!(lines[0], "short 200 1");
    // nginx ends each of its connections after 100 requests, which nobody notices here.
    assert!(lines[1..].iter().all(|line| *line == "short 200 0"), "{text}");
    // HTTP/2 is told by a GOAWAY.
    let Some(h2load) = peer::find("h2load") else { return };
    for streams in ["1", "10"] {
        let mut command = Command::new(&h2load);
        let url = format!("http://{}/short", files.world.upstream("files2"));
        command.args(["--requests", "2000", "--clients", "2", "--max-concurrent-streams", streams, &url]);
        let text = succeed(command).await;
        assert!(text.contains("2000 succeeded, 0 failed, 0 errored") && text.contains("2000 2xx"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrk_meets_no_error() {
    let Some(wrk) = peer::find("wrk") else { return };
    let Some(files) = Files::start().await else { return };
    let mut command = Command::new(wrk);
    command.args(["-t", "1", "-c", "50", "-d", "3s", &format!("http://{}/short", files.world.upstream("files"))]);
    let text = succeed(command).await;
    let requests =
        text.lines().find(|line| line.contains("requests in")).and_then(|line| line.split_whitespace().next());
    assert!(requests.and_then(|number| number.parse::<u64>().ok()).is_some_and(|number| number > 100), "{text}");
    assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_their_order() {
    let Some(files) = Files::start().await else { return };
    let mut socket = TcpStream::connect(files.world.upstream("files")).await.expect("a connection");
    let mut requests = String::new();
    for n in 0..20 {
        fs::write(files.nginx.files.join(n.to_string()), format!("<{n}>")).expect("written");
        let last = if n == 19 { "connection: close\r\n" } else { "" };
        requests += &format!("GET /{n} HTTP/1.1\r\nhost: files.test\r\n{last}\r\n");
    }
    socket.write_all(requests.as_bytes()).await.expect("sent");
    let mut answers = String::new();
    socket.read_to_string(&mut answers).await.expect("answered");
    let told: Vec<&str> = answers.split('<').skip(1).filter_map(|rest| rest.split('>').next()).collect();
    assert_eq!(told, (0..20).map(|n| n.to_string()).collect::<Vec<_>>(), "{answers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_http_1_0_are_served() {
    let Some(files) = Files::start().await else { return };
    let sent = noise(100_000);
    fs::write(files.nginx.files.join("summed"), &sent).expect("written");
    fs::write(files.nginx.files.join("page"), &sent).expect("written");
    let got = files.folder().join("got");
    let got = got.to_str().expect("text");
    // The app's response to the second is in chunks, which HTTP/1.0 does not know.
    for url in ["URL/page", "URL/summed"] {
        let text = files.curl("--http1.0", "files", &["--dump-header", "-", "--output", got, url]).await;
        assert!(text.starts_with("HTTP/1.0 200") && !text.contains("chunked"), "{text}");
        assert!(fs::read(got).expect("downloaded") == sent, "{url}");
    }
    let kept = ["--header", "connection: keep-alive", "--write-out", "%{http_code} %{num_connects};", "--output", got];
    let arguments: Vec<&str> = kept.into_iter().chain(["URL/page", "URL/page", "--output", got]).collect();
    let text = files.curl("--http1.0", "files", &arguments).await;
    assert_eq!(text, "200 1;200 0;");
}
