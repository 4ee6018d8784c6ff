//! Forms of requests and answers: JSON, YAML, lines of JSON.

use heddle_api::document::Format;
use http::{
    HeaderMap, HeaderValue,
    header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE},
};

use super::refusal::{Refusal, Why};

/// Lines of JSON, for watches.
pub(super) const LINES: &str = "application/x-ndjson";
/// RFC 7396.
pub(super) const MERGE_PATCH: &str = "application/merge-patch+json";
/// Media types of YAML; the first is the registered one (RFC 9512).
const YAML: [&str; 4] = ["application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"];

/// The media type of a format.
pub(super) fn name(format: Format) -> &'static str {
    match format {
        Format::Json => "application/json",
        Format::Yaml => YAML[0],
    }
}

/// The form of the answer: the best one that the client accepts, JSON among equals.
pub(super) fn accepted(headers: &HeaderMap) -> Result<Format, Refusal> {
    let json = quality(headers, &["application/json"])?;
    let yaml = quality(headers, &YAML)?;
    match (json, yaml) {
        (0, 0) => Err(Refusal::new(Why::NotAcceptable, "answers are application/json or application/yaml")),
        (json, yaml) if yaml > json => Ok(Format::Yaml),
        _ => Ok(Format::Json),
    }
}

/// Whether the client takes lines of JSON.
pub(super) fn accepts_lines(headers: &HeaderMap) -> Result<(), Refusal> {
    // `application/json` too: it is what most clients send whatever they ask for.
    if quality(headers, &[LINES, "application/json"])? == 0 {
        return Err(Refusal::new(Why::NotAcceptable, "a watch is answered by application/x-ndjson"));
    }
    Ok(())
}

/// How much one of these types is wanted, in thousandths; the most specific range decides (RFC 9110,
/// section 12.5.1).
fn quality(headers: &HeaderMap, types: &[&str]) -> Result<u16, Refusal> {
    if !headers.contains_key(ACCEPT) {
        return Ok(1000);
    }
    let mut best = (0, 0);
    for value in headers.get_all(ACCEPT) {
        let text = value.to_str().map_err(|_| Refusal::new(Why::Malformed, "the header Accept cannot be read"))?;
        for range in text.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let specificity = match media.as_str() {
                "*/*" => 1,
                _ if types.iter().any(|known| media.strip_suffix("/*") == known.split('/').next()) => 2,
                media if types.contains(&media) => 3,
                _ => continue,
            };
            let weight = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
            let quality = weight.map_or(1.0, |weight| weight.parse::<f32>().unwrap_or(0.0).clamp(0.0, 1.0));
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
            let quality = (quality * 1000.0) as u16;
            best = best.max((specificity, quality));
        }
    }
    Ok(best.1)
}

/// The form of the body.
pub(super) fn sent(headers: &HeaderMap, merge_patch: bool) -> Result<Format, Refusal> {
    let unsupported = |detail: String| Err(Refusal::new(Why::UnsupportedMediaType, detail));
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return unsupported("bodies are read as they are, without content encoding".to_owned());
    }
    let wanted = if merge_patch { MERGE_PATCH } else { "application/json or application/yaml" };
    let Some(text) = headers.get(CONTENT_TYPE).and_then(|value: &HeaderValue| value.to_str().ok()) else {
        return unsupported(format!("the header Content-Type is missing; send {wanted}"));
    };
    let mut parts = text.split(';').map(|part| part.trim().to_ascii_lowercase());
    let media = parts.next().unwrap_or_default();
    if let Some(charset) = parts.find_map(|part| part.strip_prefix("charset=").map(|name| name.replace('"', "")))
        && charset != "utf-8"
    {
        return unsupported(format!("charset {charset} is not read; send UTF-8"));
    }
    match media.as_str() {
        "application/json" => Ok(Format::Json),
        MERGE_PATCH if merge_patch => Ok(Format::Json),
        media if YAML.contains(&media) => Ok(Format::Yaml),
        other => unsupported(format!("{other:?} is not read; send {wanted}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: http::HeaderName, value: &'static str) -> HeaderMap {
        [(name, HeaderValue::from_static(value))].into_iter().collect()
    }

    #[test]
    fn the_most_specific_range_decides() {
        for (accept, format) in [
            ("*/*", Some(Format::Json)),
            ("application/*;q=0.5", Some(Format::Json)),
            ("application/yaml", Some(Format::Yaml)),
            ("text/yaml, */*;q=0.1", Some(Format::Yaml)),
            ("application/yaml;q=0.4, application/json;q=0.5", Some(Format::Json)),
            ("application/json;q=0, */*", Some(Format::Yaml)),
            ("*/*, application/json;q=0, application/yaml;q=0", None),
            ("text/html", None),
            ("", None),
        ] {
            assert_eq!(accepted(&headers(ACCEPT, accept)).ok(), format, "{accept}");
        }
        assert_eq!(accepted(&HeaderMap::new()).ok(), Some(Format::Json));
        assert!(accepts_lines(&headers(ACCEPT, "application/x-ndjson")).is_ok());
        assert!(accepts_lines(&headers(ACCEPT, "text/html")).is_err());
    }

    #[test]
    fn bodies_say_what_they_are() {
        for (text, format) in [
            ("application/json", Some(Format::Json)),
            ("Application/JSON; charset=\"UTF-8\"", Some(Format::Json)),
            ("text/yaml", Some(Format::Yaml)),
            ("application/json; charset=latin1", None),
            ("application/merge-patch+json", None),
            ("text/plain", None),
        ] {
            assert_eq!(sent(&headers(CONTENT_TYPE, text), false).ok(), format, "{text}");
        }
        assert!(sent(&HeaderMap::new(), false).is_err());
        assert!(sent(&headers(CONTENT_TYPE, MERGE_PATCH), true).is_ok());
        assert!(sent(&headers(CONTENT_ENCODING, "gzip"), false).is_err());
    }
}
