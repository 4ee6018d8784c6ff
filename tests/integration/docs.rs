//! What the pages say of files and commands is so.

use std::{fs, path::Path};

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The first code span of each row of the first table below a heading.
fn table<'a>(page: &'a str, heading: &str) -> Vec<&'a str> {
    let below = page.split_once(heading).unwrap_or_else(|| panic!("no {heading:?}")).1;
    let rows = below.lines().skip_while(|line| !line.starts_with("| 1 ")).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.split('`').nth(1).unwrap_or_else(|| panic!("a row without a file: {row}"))).collect()
}

#[test]
fn a_request_passes_ten_files_at_most_and_they_exist() {
    let page = page("ARCHITECTURE.md");
    let files = table(&page, "## The way of a request");
    assert!((5..=10).contains(&files.len()), "{files:?}");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy/src");
    for file in files {
        assert!(sources.join(file).is_file(), "ARCHITECTURE.md names {file}, which is not in proxy/src");
    }
}

#[test]
fn the_first_two_commands_of_the_readme_are_one_line_each() {
    let page = page("README.md");
    let blocks: Vec<&str> = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or("")).collect();
    let commands: Vec<_> = blocks.iter().take(2).map(|block| block.trim()).collect();
    assert_eq!(commands, ["cargo run -p heddle-shop -- demo", "cargo test --workspace"]);
}
