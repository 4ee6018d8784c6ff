use serde_json::json;

use super::*;

fn done(text: &str, change: &Change) -> Result<String, String> {
    apply(text, change, &Originals::new(), &mut Originals::new())
}

fn top() -> Path {
    Path::default()
}

#[test]
fn an_entry_comes_first_below_its_key() {
    let add = Change::AddEntry { at: top().key("a"), key: "m".into(), value: json!({ "x": [1, { "w": "z" }] }) };
    assert_eq!(
        done("a: # c\n  # d\n  b: 1\n", &add).unwrap(),
        "a: # c\n  m:\n    x:\n      - 1\n      - w: z\n  # d\n  b: 1\n"
    );
    assert_eq!(done("a: {b: 1}\n", &add).unwrap(), "a: {\"m\": {\"x\":[1,{\"w\":\"z\"}]}, b: 1}\n");
    assert_eq!(done("- 1\n", &add).unwrap_err(), "/a: is no mapping");
}

#[test]
fn an_item_comes_first_and_goes_again() {
    let add = Change::AddFirst { at: top().key("a"), value: json!({ "k": "v", "name": "m" }) };
    let remove = Change::RemoveItem { at: top().key("a"), index: 0 };
    for text in ["a:\n- b\n- c\n", "a:\n  # - no\n  - b # c\n", "a: [ 1, 2 ]\n", "a: [\n  1\n]\n", "a: [ ]"] {
        let added = done(text, &add).unwrap();
        assert_eq!(done(&added, &remove).unwrap(), text, "{added}");
    }
    assert_eq!(done("a:\n- b\n", &add).unwrap(), "a:\n- name: m\n  k: v\n- b\n");
    let last = Change::RemoveItem { at: top().key("a"), index: 1 };
    assert_eq!(done("a: [1, 2]\n", &last).unwrap(), "a: [1]\n");
    assert_eq!(done("a:\n- |\n  b\n\n- c: d # e\nf: g\n", &last).unwrap(), "a:\n- |\n  b\n\nf: g\n");
}

#[test]
fn a_replaced_entry_is_kept_and_put_back() {
    let text = "a:\n  old:   # c\n    x:   1 # d\n  b: 2\n";
    let there =
        Change::ReplaceEntry { at: top().key("a"), key: "old".into(), new_key: "new".into(), value: json!({ "w": 2 }) };
    let back =
        Change::ReplaceEntry { at: top().key("a"), key: "new".into(), new_key: "old".into(), value: json!({ "x": 1 }) };
    let mut kept = Originals::new();
    let replaced = apply(text, &there, &Originals::new(), &mut kept).unwrap();
    assert_eq!(replaced, "a:\n  new:\n    w: 2 # d\n  b: 2\n");
    assert_eq!(apply(&replaced, &back, &kept, &mut Originals::new()).unwrap(), text);
    // A kept text that means something else is not used.
    kept.insert("/a/new".into(), "old: 3".into());
    assert_eq!(apply(&replaced, &back, &kept, &mut Originals::new()).unwrap(), "a:\n  old:\n    x: 1 # d\n  b: 2\n");
}

#[test]
fn nothing_is_a_value_too() {
    let put = Change::ReplaceEntry { at: top(), key: "a".into(), new_key: "a".into(), value: json!(["x"]) };
    let null = Change::ReplaceEntry { at: top(), key: "a".into(), new_key: "a".into(), value: Value::Null };
    for text in ["a:\nb: 1\n", "a: # c\nb: 1\n", "a: ~\nb: 1\n", "b: 1\na:", "{a: , b: 1}", "{\"a\": null, \"b\": 1}"] {
        let mut kept = Originals::new();
        let there = apply(text, &put, &Originals::new(), &mut kept).unwrap();
        assert_eq!(apply(&there, &null, &kept, &mut Originals::new()).unwrap(), text, "{there}");
    }
}
