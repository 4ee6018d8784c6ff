//! `heddle inject` and `heddle uninject`, as they are typed.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

const POD: &str =
    "# mine\napiVersion: v1\nkind: Pod\nmetadata:\n  name: a   # a\nspec:\n  containers:\n  - name: app\n";

fn heddle(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_heddle"))
        .args(arguments)
        .env_remove("HEDDLE_CONFIG")
        .env("HOME", "/nowhere")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_pipe_of_both_is_the_file_itself() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pod.yaml");
    let roots = folder.path().join("roots.pem");
    std::fs::write(&file, POD).unwrap();
    let certificate = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
    std::fs::write(&roots, &certificate).unwrap();
    let (file, roots) = (file.to_str().unwrap(), roots.to_str().unwrap());

    let injected = heddle(&["inject", file, "--roots", roots, "--image", "mine:1"], "");
    let said = String::from_utf8_lossy(&injected.stderr);
    assert!(injected.status.success() && said == "Pod a: injected\n", "{said}");
    let text = String::from_utf8(injected.stdout).unwrap();
    assert!(text.contains("image: mine:1") && text.contains(certificate.lines().nth(1).unwrap()), "{text}");
    let back = heddle(&["uninject"], &text);
    assert_eq!(String::from_utf8(back.stdout).unwrap(), POD);

    // Without a file of roots they come from the context, of which there is none.
    let none = heddle(&["inject", "-f", "-"], POD);
    assert_eq!((none.status.code(), none.stdout.len()), (Some(2), 0));
    let taken = heddle(&["inject", "--roots", roots], &POD.replace("name: app", "name: heddle-proxy"));
    let said = String::from_utf8_lossy(&taken.stderr);
    assert_eq!((taken.status.code(), taken.stdout.len()), (Some(1), 0));
    assert!(said.contains("standard input: Pod a: container heddle-proxy is there already"), "{said}");
}
