//! Changes made in the text of a document, such that all else stays byte for byte, and that taking a change back
//! gives the text of before.

use std::{collections::BTreeMap, ops::Range};

use heddle_kubernetes::patch::{Change, Path};
use serde_json::Value;

use super::{
    render,
    tree::{self, Content, Node, Style},
};

#[cfg(test)]
mod tests;

/// What was replaced, by its place: the text of the entry, for whoever takes the change back.
pub(super) type Originals = BTreeMap<String, String>;

/// Makes one change. What is replaced is kept in `replaced`; where `originals` holds a text for a place, that is put
/// there if it means what the change says.
///
/// # Errors
/// It cannot be made in this text.
pub(super) fn apply(
    text: &str,
    change: &Change,
    originals: &Originals,
    replaced: &mut Originals,
) -> Result<String, String> {
    let root = tree::parse(text)?.ok_or("the document is empty")?;
    let mut wanted = root.value()?;
    change.apply(&mut wanted).map_err(|misfit| misfit.to_string())?;
    let editing = Editing { text, root: &root, newline: if text.contains("\r\n") { "\r\n" } else { "\n" } };
    let (edits, place) = editing.edits(change, originals)?;
    if let Change::ReplaceEntry { at, new_key, .. } = change {
        replaced.insert(at.key(new_key).to_string(), text[edits[0].0.clone()].to_owned());
    }
    for (range, new) in edits {
        let edited = format!("{}{}{}", &text[..range.start], new, &text[range.end..]);
        let got = tree::parse(&edited).ok().flatten().and_then(|root| root.value().ok());
        if got.as_ref() == Some(&wanted) {
            return Ok(edited);
        }
    }
    Err(format!("{place} cannot be changed as it is written here: write it out, without anchor or alias"))
}

struct Editing<'a> {
    text: &'a str,
    root: &'a Node,
    newline: &'a str,
}

/// Bytes to replace, and by what.
type Edit = (Range<usize>, String);

impl Editing<'_> {
    /// The edits that may do it, best first.
    fn edits(&self, change: &Change, originals: &Originals) -> Result<(Vec<Edit>, Path), String> {
        let shared = |at: &Path| {
            format!(
                "{} is an alias of, or merged from, what is written elsewhere: write it out to have it changed",
                shown(at)
            )
        };
        let find = |at: &Path| self.root.find(at).ok_or_else(|| shared(at));
        match change {
            Change::AddEntry { at, key, value } => {
                let (node, parent) = find(at)?;
                let Content::Mapping(style, entries) = &node.content else { return Err(shared(at)) };
                let first = entries.first().map(|(key, _)| key.span.start);
                let edit = match (style, first) {
                    (Style::Block, Some(first)) => {
                        self.block_first(first, parent, |indent| render::entry(key, value, indent))
                    }
                    _ => self.flow_first(node, first, &format!("{}: ", Value::from(key.as_str())), value),
                };
                Ok((vec![edit], at.key(key)))
            }
            Change::AddFirst { at, value } => {
                let (node, parent) = find(at)?;
                let Content::Sequence(style, items) = &node.content else { return Err(shared(at)) };
                let edit = match (style, items.first()) {
                    (Style::Block, Some(first)) => {
                        let dash = self.dash(parent.unwrap_or(0), first.span.start).ok_or_else(|| shared(at))?;
                        self.block_first(dash, parent, |indent| render::item(value, indent))
                    }
                    (_, first) => self.flow_first(node, first.map(|first| first.span.start), "", value),
                };
                Ok((vec![edit], at.index(0)))
            }
            Change::ReplaceEntry { at, key, new_key, value } => {
                let (node, _) = find(at)?;
                let index = node.entry(key).ok_or_else(|| shared(&at.key(key)))?;
                let Content::Mapping(style, entries) = &node.content else { return Err(shared(at)) };
                let (written, old) = &entries[index];
                let span = written.span.start..old.span.end.max(written.span.end);
                let new = match style {
                    Style::Block => self.with_newlines(render::entry(new_key, value, self.column(span.start))),
                    Style::Flow => format!("{}: {value}", Value::from(new_key.as_str())),
                };
                let kept = originals.get(&at.key(key).to_string()).cloned();
                Ok((kept.into_iter().chain([new]).map(|new| (span.clone(), new)).collect(), at.key(key)))
            }
            Change::RemoveEntry { at, key } => {
                let (node, _) = find(at)?;
                let index = node.entry(key).ok_or_else(|| shared(&at.key(key)))?;
                let Content::Mapping(style, entries) = &node.content else { return Err(shared(at)) };
                let spans: Vec<_> =
                    entries.iter().map(|(key, value)| key.span.start..value.span.end.max(key.span.end)).collect();
                Ok((vec![(self.without(*style, &spans, index), String::new())], at.key(key)))
            }
            Change::RemoveItem { at, index } => {
                let (node, parent) = find(at)?;
                let Content::Sequence(style, items) = &node.content else { return Err(shared(at)) };
                let mut spans: Vec<_> = items.iter().map(|item| item.span.clone()).collect();
                if *style == Style::Block {
                    let mut after = parent.unwrap_or(0);
                    for span in &mut spans {
                        span.start = self.dash(after, span.start).ok_or_else(|| shared(at))?;
                        after = span.end;
                    }
                }
                Ok((vec![(self.without(*style, &spans, *index), String::new())], at.index(*index)))
            }
        }
    }

    /// Before the first part of a block: on lines of its own, above comments that belong to that part.
    fn block_first(&self, first: usize, parent: Option<usize>, new: impl Fn(usize) -> String) -> Edit {
        let column = self.column(first);
        let new = self.with_newlines(new(column));
        let indent = " ".repeat(column);
        let below = parent.map(|parent| self.next_line(parent)).filter(|below| {
            let line = self.line_start(first);
            *below <= line && self.text[*below..line].lines().all(is_comment)
        });
        match below {
            Some(below) => (below..below, format!("{indent}{new}{}", self.newline)),
            None => (first..first, format!("{new}{}{indent}", self.newline)),
        }
    }

    /// After an opening bracket: as its first part is, on a line of its own or not.
    fn flow_first(&self, node: &Node, first: Option<usize>, key: &str, value: &Value) -> Edit {
        let Some(first) = first else {
            let at = node.span.start + 1;
            return (at..at, format!("{key}{}", render::json(value, None)));
        };
        let indent = self.indent(first);
        let own_line = self.line_start(first) + indent.len() == first && self.line_start(first) > node.span.start;
        let new = if own_line {
            let outer = self.indent(node.span.start);
            let step = indent.strip_prefix(outer).filter(|step| !step.is_empty()).unwrap_or("  ");
            let value = self.with_newlines(render::json(value, Some((indent, step))));
            format!("{key}{value},{}{indent}", self.newline)
        } else {
            format!("{key}{}, ", render::json(value, None))
        };
        (first..first, new)
    }

    /// The bytes to take out for one part to be gone.
    fn without(&self, style: Style, spans: &[Range<usize>], index: usize) -> Range<usize> {
        let span = spans[index].clone();
        let next = spans.get(index + 1);
        match style {
            Style::Block => {
                let line = self.line_start(span.start);
                let own_line = self.text[line..span.start].bytes().all(|byte| byte == b' ');
                match next {
                    Some(next) if !own_line => span.start..next.start,
                    _ => line..self.next_line(span.end),
                }
            }
            Style::Flow => match (next, index.checked_sub(1)) {
                (Some(next), _) => span.start..next.start,
                (None, Some(previous)) => spans[previous].end..span.end,
                (None, None) => span,
            },
        }
    }

    /// The dash of the item that begins here, which is on a line of its own after `after`.
    fn dash(&self, after: usize, item: usize) -> Option<usize> {
        let mut line = self.next_line(after);
        while line <= item {
            let rest = &self.text[line..];
            let content = rest.trim_start_matches(' ');
            let at = line + (rest.len() - content.len());
            if content.starts_with("- ") || content.starts_with("-\n") || content.starts_with("-\r\n") {
                return Some(at);
            }
            let next = self.next_line(line);
            if next == line {
                break;
            }
            line = next;
        }
        None
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |newline| newline + 1)
    }

    /// Where the line after this place begins, or the text ends.
    fn next_line(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |newline| at + newline + 1)
    }

    fn column(&self, at: usize) -> usize {
        self.text[self.line_start(at)..at].chars().count()
    }

    /// White space at the begin of the line of this place.
    fn indent(&self, at: usize) -> &str {
        let line = &self.text[self.line_start(at)..];
        &line[..line.find(|c: char| c != ' ' && c != '\t').unwrap_or(line.len())]
    }

    fn with_newlines(&self, text: String) -> String {
        if self.newline == "\n" { text } else { text.replace('\n', self.newline) }
    }
}

fn is_comment(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

fn shown(path: &Path) -> String {
    let text = path.to_string();
    if text.is_empty() { "the document".to_owned() } else { text }
}
