//! nginx as an app: files up and down, by HTTP/1.1 and by HTTP/2.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use heddle_tests::{
    peer,
    ports::{free_port, listening},
    process::Process,
};

/// A running nginx.
pub(crate) struct Nginx {
    _process: Process,
    _folder: tempfile::TempDir,
    /// What it serves.
    pub(crate) files: PathBuf,
    /// Where it speaks HTTP/1.1.
    pub(crate) http1: u16,
    /// Where it speaks HTTP/2.
    pub(crate) http2: u16,
}

impl Nginx {
    /// `None` where there is no nginx.
    pub(crate) async fn start() -> Option<Self> {
        let nginx = peer::find("nginx")?;
        let folder = tempfile::Builder::new().prefix("heddle-nginx-").tempdir().expect("a temporary folder");
        let files = folder.path().join("files");
        std::fs::create_dir(&files).expect("a new folder");
        let (http1, http2) = (free_port(), free_port());
        let config = folder.path().join("nginx.conf");
        std::fs::write(&config, settings(folder.path(), http1, http2)).expect("written");
        let mut command = Command::new(nginx);
        command.arg("-e").arg(folder.path().join("error.log")).arg("-c").arg(&config);
        let process = Process::start("nginx", command, folder.path());
        for port in [http1, http2] {
            listening(port).await;
        }
        Some(Self { _process: process, _folder: folder, files, http1, http2 })
    }
}

fn settings(folder: &Path, http1: u16, http2: u16) -> String {
    let folder = folder.display();
    format!(
        "
user root; daemon off; master_process off; pid {folder}/pid; worker_rlimit_nofile 2000;
events {{ worker_connections 1000; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  client_max_body_size 0;
  server {{
    listen 127.0.0.1:{http1};
    listen 127.0.0.1:{http2} http2;
    # After so many an HTTP/2 client is sent a GOAWAY, an HTTP/1.1 client a close.
    keepalive_requests 100;
    location / {{ root {folder}/files; dav_methods PUT DELETE; if_modified_since before; }}
    location /nothing {{ return 204; }}
    location /small {{ root {folder}/files; dav_methods PUT; client_max_body_size 1k; }}
    location /short {{ return 200 short; }}
    location /summed {{ root {folder}/files; add_trailer x-sum ok always; add_header trailer x-sum; }}
  }}
}}
"
    )
}
