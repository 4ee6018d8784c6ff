//! A document of YAML (and so JSON) as a tree that knows where in the text each part is.

use std::{collections::HashMap, ops::Range};

use granit_parser::{Event, Parser, ScalarStyle, ScanError, StructureStyle, options};
use heddle_kubernetes::patch::{Path, Step};
use serde_json::{Map, Number, Value};

/// How deep a document may be nested: more than any manifest, less than the stack.
const DEPTH: usize = 256;
/// Nodes that aliases may repeat in all.
const REPEATED: usize = 100_000;

/// A part of a document.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Bytes of its content: without anchor, tag and what follows on its last line.
    pub(super) span: Range<usize>,
    /// What it is.
    pub(super) content: Content,
    /// Written elsewhere, and only referred to here.
    pub(super) alias: bool,
}

/// What a part of a document is.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// A value without parts.
    Scalar(Value),
    /// Keys and values, in their order.
    Mapping(Style, Vec<(Node, Node)>),
    /// Items.
    Sequence(Style, Vec<Node>),
}

/// How a mapping or sequence is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// By indentation.
    Block,
    /// In brackets.
    Flow,
}

/// Where the documents of a text are: their bytes follow upon one another, and are all of the text.
pub(super) fn documents(text: &str) -> Result<Vec<Range<usize>>, String> {
    if text.trim_start().starts_with(['{', '['])
        && let Some(found) = json_documents(text)
    {
        return Ok(found);
    }
    let mut starts = Vec::new();
    for event in parser(text) {
        if let (Event::DocumentStart(..), span) = event.map_err(|error| say(&error))? {
            starts.extend(span.byte_range().map(|range| range.start));
        }
    }
    // What is before the first document (comments, directives) belongs to it.
    if let Some(first) = starts.first_mut() {
        *first = 0;
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]).collect::<Vec<_>>();
    Ok(starts.into_iter().zip(ends).map(|(start, end)| start..end).collect())
}

/// JSON documents need nothing between them.
fn json_documents(text: &str) -> Option<Vec<Range<usize>>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
    while let Some(value) = stream.next() {
        value.ok()?;
        let start = found.last().map_or(0, |last| last.end);
        found.push(start..stream.byte_offset());
    }
    found.last_mut()?.end = text.len();
    Some(found)
}

/// The tree of one document; `None`: it is empty.
pub(super) fn parse(text: &str) -> Result<Option<Node>, String> {
    let mut reading = Reading { text, events: parser(text), anchors: HashMap::new(), repeated: 0, position: 0 };
    let mut root = None;
    while let Some((event, span)) = reading.next()? {
        match event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentStart(..) | Event::DocumentEnd => {}
            event => root = Some(reading.node(event, span, DEPTH)?),
        }
    }
    Ok(root)
}

fn parser(text: &str) -> Parser<'_, granit_parser::StrInput<'_>> {
    Parser::new_from_str_with_options(text, options! { emit_comments: false })
}

fn say(error: &ScanError) -> String {
    error.to_string()
}

struct Reading<'a> {
    text: &'a str,
    events: Parser<'a, granit_parser::StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    repeated: usize,
    position: usize,
}

impl<'a> Reading<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Range<usize>)>, String> {
        let Some(next) = self.events.next() else { return Ok(None) };
        let (event, span) = next.map_err(|error| say(&error))?;
        let range = span.byte_range().unwrap_or(self.position..self.position);
        self.position = range.end;
        Ok(Some((event, range)))
    }

    /// The end of the colon after a key.
    fn colon(&self, key: usize) -> usize {
        let after = self.text.get(key..).unwrap_or_default();
        let colon = after.find(|c: char| !c.is_whitespace()).filter(|at| after[*at..].starts_with(':'));
        colon.map_or(key, |at| key + at + 1)
    }

    fn must(&mut self) -> Result<(Event<'a>, Range<usize>), String> {
        self.next()?.ok_or_else(|| "the document ends too early".to_owned())
    }

    fn node(&mut self, event: Event<'a>, span: Range<usize>, depth: usize) -> Result<Node, String> {
        let deeper = depth.checked_sub(1).ok_or_else(|| format!("it is nested deeper than {DEPTH}"))?;
        let mut node = Node { span: span.clone(), content: Content::Scalar(Value::Null), alias: false };
        let anchor = event.anchor_id().filter(|id| *id != 0);
        match event {
            Event::Scalar(text, style, _, tag) => {
                let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str"));
                if matches!(style, ScalarStyle::Literal | ScalarStyle::Folded) {
                    // Up to where the next thing begins, says the parser.
                    let written = self.text.get(span.clone()).unwrap_or_default();
                    node.span.end = span.start + written.trim_end().len();
                }
                let plain = style == ScalarStyle::Plain && !is_text;
                node.content =
                    Content::Scalar(if plain { meaning(&text, span.is_empty()) } else { text.as_ref().into() });
            }
            Event::MappingStart(style, ..) => {
                let mut entries: Vec<(Node, Node)> = Vec::new();
                loop {
                    let (event, end) = self.must()?;
                    if matches!(event, Event::MappingEnd) {
                        let last = entries.last().map(|(key, value)| key.span.end.max(value.span.end));
                        node.span.end = close(style, &end, last, &span);
                        break;
                    }
                    let key = self.node(event, end, deeper)?;
                    let (event, span) = self.must()?;
                    let mut value = self.node(event, span, deeper)?;
                    if value.span.is_empty() && matches!(value.content, Content::Scalar(_)) {
                        // Nothing is after its colon, but the colon belongs to it.
                        let at = self.colon(key.span.end);
                        value.span = at..at;
                    }
                    entries.push((key, value));
                }
                node.content = Content::Mapping(style.into(), entries);
            }
            Event::SequenceStart(style, ..) => {
                let mut items: Vec<Node> = Vec::new();
                loop {
                    let (event, end) = self.must()?;
                    if matches!(event, Event::SequenceEnd) {
                        node.span.end = close(style, &end, items.last().map(|item| item.span.end), &span);
                        break;
                    }
                    items.push(self.node(event, end, deeper)?);
                }
                node.content = Content::Sequence(style.into(), items);
            }
            Event::Alias(id) => {
                let referred = self.anchors.get(&id).ok_or("an alias refers to what it is part of")?;
                self.repeated += referred.count();
                if self.repeated > REPEATED {
                    return Err("its aliases repeat too much".to_owned());
                }
                node.content = referred.content.clone();
                node.alias = true;
            }
            _ => return Err("it cannot be read".to_owned()),
        }
        if let Some(id) = anchor {
            self.anchors.insert(id, node.clone());
        }
        Ok(node)
    }
}

/// Brackets end a flow; a block ends with what is last in it.
fn close(style: StructureStyle, end: &Range<usize>, last: Option<usize>, start: &Range<usize>) -> usize {
    match style {
        StructureStyle::Flow => end.end,
        StructureStyle::Block => last.unwrap_or(start.end),
    }
}

impl From<StructureStyle> for Style {
    fn from(style: StructureStyle) -> Self {
        match style {
            StructureStyle::Block => Self::Block,
            StructureStyle::Flow => Self::Flow,
        }
    }
}

/// What plain text means. `yes` and `no` stay text here, as they are in YAML 1.2.
fn meaning(text: &str, absent: bool) -> Value {
    if absent {
        return Value::Null;
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let starts = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
    let number = || {
        let digits = text.strip_prefix('+').unwrap_or(text);
        let whole = digits.parse::<u64>().map(Number::from).or_else(|_| digits.parse::<i64>().map(Number::from));
        whole.ok().or_else(|| Number::from_f64(digits.parse().ok()?))
    };
    starts.then(number).flatten().map_or_else(|| text.into(), Value::Number)
}

impl Node {
    fn count(&self) -> usize {
        1 + match &self.content {
            Content::Scalar(_) => 0,
            Content::Mapping(_, entries) => entries.iter().map(|(key, value)| key.count() + value.count()).sum(),
            Content::Sequence(_, items) => items.iter().map(Self::count).sum(),
        }
    }

    /// What it means, with what is merged (`<<`) in its place.
    ///
    /// # Errors
    /// A key that is there twice.
    pub(super) fn value(&self) -> Result<Value, String> {
        Ok(match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::Sequence(_, items) => items.iter().map(Self::value).collect::<Result<_, _>>()?,
            Content::Mapping(_, entries) => {
                let mut map = Map::new();
                let mut merged = Vec::new();
                for (key, value) in entries {
                    let name = key.name();
                    if name == "<<" {
                        merged.push(value.value()?);
                    } else if map.insert(name.clone(), value.value()?).is_some() {
                        return Err(format!("the key {name} is there twice"));
                    }
                }
                for merged in merged {
                    let maps = if let Value::Array(maps) = merged { maps } else { vec![merged] };
                    for (key, value) in maps.into_iter().filter_map(into_map).flatten() {
                        map.entry(key).or_insert(value);
                    }
                }
                Value::Object(map)
            }
        })
    }

    /// As a key; those that are no text are shown as JSON.
    fn name(&self) -> String {
        match self.value() {
            Ok(Value::String(text)) => text,
            Ok(other) => other.to_string(),
            Err(_) => String::new(),
        }
    }

    /// The entry of a mapping that is written in it, by its place.
    pub(super) fn entry(&self, key: &str) -> Option<usize> {
        let Content::Mapping(_, entries) = &self.content else { return None };
        entries.iter().position(|(written, _)| written.name() == key)
    }

    /// What is at a path, with the end of what leads to it (its key); `None`: it is not written there.
    pub(super) fn find(&self, path: &Path) -> Option<(&Self, Option<usize>)> {
        let mut at = (self, None);
        for step in &path.0 {
            if at.0.alias {
                return None;
            }
            at = match (step, &at.0.content) {
                (Step::Key(key), Content::Mapping(_, entries)) => {
                    let (key, value) = &entries[at.0.entry(key)?];
                    (value, Some(key.span.end))
                }
                (Step::Index(index), Content::Sequence(_, items)) => (items.get(*index)?, None),
                _ => return None,
            };
        }
        Some(at).filter(|(node, _)| !node.alias)
    }
}

fn into_map(value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(map) => Some(map),
        _ => None,
    }
}
