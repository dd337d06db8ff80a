//! Content types of outputs.
//!
//! Only media keep their type. A browser could execute anything else in the origin that serves it.

/// Content type of everything that is not known to be media.
pub const OCTET_STREAM: &str = "application/octet-stream";

const SVG: &str = "image/svg+xml";

/// File extension for each content type. The first type with an extension is the one that the
/// extension stands for.
const EXTENSIONS: [(&str, &str); 22] = [
    ("video/mp4", ".mp4"),
    ("video/webm", ".webm"),
    ("video/quicktime", ".mov"),
    ("video/x-matroska", ".mkv"),
    ("video/x-msvideo", ".avi"),
    ("image/png", ".png"),
    ("image/jpeg", ".jpg"),
    ("image/jpeg", ".jpeg"),
    ("image/webp", ".webp"),
    ("image/gif", ".gif"),
    ("image/avif", ".avif"),
    ("image/heic", ".heic"),
    ("image/tiff", ".tiff"),
    ("image/bmp", ".bmp"),
    (SVG, ".svg"),
    ("audio/mpeg", ".mp3"),
    ("audio/mp4", ".m4a"),
    ("audio/wav", ".wav"),
    ("audio/x-wav", ".wav"),
    ("audio/ogg", ".ogg"),
    ("audio/flac", ".flac"),
    ("audio/aac", ".aac"),
];

/// Returns the file extension for a content type with its dot, or an empty string.
#[must_use]
pub fn extension(content_type: &str) -> &'static str {
    let known = EXTENSIONS.iter().find(|(known, _)| *known == content_type);
    known.map_or("", |(_, extension)| extension)
}

/// Returns the content type of media, and [`OCTET_STREAM`] for all types that a browser could
/// execute.
#[must_use]
pub fn safe_content_type(declared: Option<&str>) -> String {
    let name = base_type(declared.unwrap_or_default());
    if is_media(&name) && name != SVG {
        name
    } else {
        OCTET_STREAM.to_owned()
    }
}

/// The content is a page or a message instead of the media that the job promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the source returned {0} instead of media")]
pub(super) struct NotMedia(&'static str);

/// Determines the content type of an output of type `kind` from the declared type, the first bytes
/// of its content and the path of its URL, in this order.
///
/// # Errors
/// [`NotMedia`] if media were promised, and the content is text.
pub(super) fn detect(
    kind: &str,
    declared: Option<&str>,
    path: &str,
    head: &[u8],
) -> Result<String, NotMedia> {
    let declared = base_type(declared.unwrap_or_default());
    let found = sniff(head);
    if let Found::Text(text) = found {
        let may_be_svg = !matches!(kind, "video" | "audio");
        return match text {
            "SVG" if may_be_svg => Ok(SVG.to_owned()),
            _ if matches!(kind, "video" | "image" | "audio") => Err(NotMedia(text)),
            _ => Ok(OCTET_STREAM.to_owned()),
        };
    }
    if is_media(&declared) && declared != SVG {
        return Ok(declared);
    }
    if let Found::Media(content_type) = found {
        return Ok(content_type.to_owned());
    }
    let by_path = EXTENSIONS.iter().find(|(_, extension)| {
        let (start, end) = (path.len().checked_sub(extension.len()), path);
        start.is_some_and(|start| {
            let end = end.get(start..).unwrap_or_default();
            end.eq_ignore_ascii_case(extension)
        })
    });
    let content_type = by_path.map_or(OCTET_STREAM, |(content_type, _)| content_type);
    Ok(if content_type == SVG {
        OCTET_STREAM
    } else {
        content_type
    }
    .to_owned())
}

/// Returns whether browsers must save a file of this type instead of showing it. An SVG image can
/// contain scripts.
pub(super) fn is_attachment(content_type: &str) -> bool {
    !is_media(content_type) || content_type == SVG
}

/// Returns a content type without its parameters, in lower case.
fn base_type(content_type: &str) -> String {
    let name = content_type.split(';').next().unwrap_or_default();
    name.trim().to_ascii_lowercase()
}

fn is_media(content_type: &str) -> bool {
    let Some((kind, subtype)) = content_type.split_once('/') else {
        return false;
    };
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte);
    matches!(kind, "video" | "image" | "audio")
        && (1..=64).contains(&subtype.len())
        && subtype.bytes().all(is_token)
}

enum Found {
    Media(&'static str),
    /// What kind of text it is.
    Text(&'static str),
    Unknown,
}

/// Recognizes content by its first bytes.
fn sniff(head: &[u8]) -> Found {
    let at = |start: usize, magic: &[u8]| {
        let end = start + magic.len();
        head.get(start..end) == Some(magic)
    };
    let media = match head {
        _ if at(4, b"ftyp") => match head.get(8..12) {
            Some(b"qt  ") => "video/quicktime",
            Some(b"avif" | b"avis") => "image/avif",
            Some(b"heic" | b"heix" | b"mif1" | b"msf1") => "image/heic",
            Some(b"M4A " | b"M4B ") => "audio/mp4",
            Some(_) | None => "video/mp4",
        },
        _ if at(0, b"\x1a\x45\xdf\xa3") => {
            if head.windows(4).any(|window| window == b"webm") {
                "video/webm"
            } else {
                "video/x-matroska"
            }
        }
        _ if at(0, b"\x89PNG\r\n\x1a\n") => "image/png",
        _ if at(0, b"\xff\xd8\xff") => "image/jpeg",
        _ if at(0, b"GIF87a") || at(0, b"GIF89a") => "image/gif",
        _ if at(0, b"RIFF") && at(8, b"WEBP") => "image/webp",
        _ if at(0, b"RIFF") && at(8, b"WAVE") => "audio/wav",
        _ if at(0, b"RIFF") && at(8, b"AVI ") => "video/x-msvideo",
        _ if at(0, b"OggS") => "audio/ogg",
        _ if at(0, b"fLaC") => "audio/flac",
        _ if at(0, b"ID3") || at(0, b"\xff\xfb") || at(0, b"\xff\xf3") => "audio/mpeg",
        _ if at(0, b"\xff\xf1") || at(0, b"\xff\xf9") => "audio/aac",
        _ => return text(head).map_or(Found::Unknown, Found::Text),
    };
    Found::Media(media)
}

/// Returns which markup or JSON a content begins with.
fn text(head: &[u8]) -> Option<&'static str> {
    let head = String::from_utf8_lossy(head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head));
    let head = head.trim_start().to_ascii_lowercase();
    let is_html = ["<!doctype html", "<html", "<head", "<body", "<script"];
    if is_html.iter().any(|start| head.starts_with(start)) {
        return Some("HTML");
    }
    if head.starts_with('<') && head.contains("<svg") {
        return Some("SVG");
    }
    if head.starts_with("<?xml") {
        return Some("XML");
    }
    if head.starts_with('<') {
        return Some("HTML");
    }
    let is_json = head.starts_with("{\"") || head.starts_with("[{") || head == "{}";
    is_json.then_some("JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MP4: &[u8] = b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2";
    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";

    #[test]
    fn non_media_content_types_become_octet_stream() {
        for (content_type, expected) in [
            (Some("video/mp4"), "video/mp4"),
            (Some("Image/PNG; charset=x"), "image/png"),
            (Some("audio/mpeg"), "audio/mpeg"),
            (Some("image/svg+xml"), OCTET_STREAM),
            (Some("text/html"), OCTET_STREAM),
            (Some("application/javascript"), OCTET_STREAM),
            (Some("video/mp4\r\nx: y"), OCTET_STREAM),
            (Some("video/"), OCTET_STREAM),
            (None, OCTET_STREAM),
        ] {
            assert_eq!(
                safe_content_type(content_type),
                expected,
                "{content_type:?}"
            );
        }
    }

    #[test]
    fn type_is_the_declared_one_then_by_content_then_by_path() {
        for (declared, path, head, expected) in [
            (Some("video/webm; codecs=vp9"), "/a.mp4", MP4, "video/webm"),
            (Some("binary/octet-stream"), "/a.mov", MP4, "video/mp4"),
            (Some("text/html"), "/a", MP4, "video/mp4"),
            (Some("application/json"), "/a", PNG, "image/png"),
            (None, "/a.MP4", b"\x01\x02", "video/mp4"),
            (None, "/a.jpeg", b"\x01\x02", "image/jpeg"),
            (None, "/a.html", b"\x01\x02", OCTET_STREAM),
            (None, "/a.svg", b"\x01\x02", OCTET_STREAM),
            (Some("image/svg+xml"), "/a", b"\x01\x02", OCTET_STREAM),
            (None, "", b"\x01\x02", OCTET_STREAM),
            (None, "/é.mp4", b"\x01", "video/mp4"),
            (None, "é", b"\x01", OCTET_STREAM),
        ] {
            assert_eq!(
                detect("video", declared, path, head).as_deref(),
                Ok(expected),
                "{path}"
            );
        }
    }

    #[test]
    fn formats_are_recognized_by_their_content() {
        for (head, expected) in [
            (MP4, "video/mp4"),
            (b"\0\0\0\x14ftypqt  \0\0\0\0".as_slice(), "video/quicktime"),
            (b"\0\0\0\x1cftypavif\0\0\0\0", "image/avif"),
            (b"\0\0\0\x18ftypheic", "image/heic"),
            (b"\0\0\0\x18ftypM4A ", "audio/mp4"),
            (b"\x1a\x45\xdf\xa3\x9f\x42\x82\x84webm", "video/webm"),
            (
                b"\x1a\x45\xdf\xa3\x9f\x42\x82\x88matroska",
                "video/x-matroska",
            ),
            (PNG, "image/png"),
            (b"\xff\xd8\xff\xe0", "image/jpeg"),
            (b"GIF89a", "image/gif"),
            (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
            (b"RIFF\0\0\0\0WAVEfmt ", "audio/wav"),
            (b"RIFF\0\0\0\0AVI LIST", "video/x-msvideo"),
            (b"OggS\0", "audio/ogg"),
            (b"fLaC\0", "audio/flac"),
            (b"ID3\x04", "audio/mpeg"),
            (b"\xff\xfb\x90\x64", "audio/mpeg"),
            (b"\xff\xf1\x50\x80", "audio/aac"),
        ] {
            let found = detect("video", None, "/a", head);
            assert_eq!(found.as_deref(), Ok(expected));
        }
    }

    #[test]
    fn pages_and_error_messages_are_not_media() {
        for (head, expected) in [
            ("<!DOCTYPE html><html>", "HTML"),
            ("\u{feff}\n <html><svg>", "HTML"),
            ("<p>Not found", "HTML"),
            ("<script>alert(1)</script>", "HTML"),
            (
                "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>",
                "XML",
            ),
            ("{\"detail\":\"expired\"}", "JSON"),
            ("[{\"error\":1}]", "JSON"),
            ("<svg onload=alert(1)>", "SVG"),
        ] {
            // The declared type does not make a page a video.
            let found = detect("video", Some("video/mp4"), "/a.mp4", head.as_bytes());
            assert_eq!(found, Err(NotMedia(expected)), "{head}");
            let file = detect("file", Some("text/html"), "/a.html", head.as_bytes()).unwrap();
            assert!(is_attachment(&file), "{head}: {file}");
        }
    }

    #[test]
    fn svg_image_is_an_attachment() {
        for head in [
            "<svg xmlns=''>",
            "<?xml version='1.0'?><svg>",
            "<!-- c --><svg>",
        ] {
            let found = detect("image", Some("image/png"), "/a.png", head.as_bytes());
            assert_eq!(found.as_deref(), Ok(SVG), "{head}");
        }
        assert!(is_attachment(SVG) && is_attachment(OCTET_STREAM));
        assert!(!is_attachment("image/png") && !is_attachment("video/mp4"));
    }
}
