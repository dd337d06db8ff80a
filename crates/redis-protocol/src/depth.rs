//! The nesting depth of a frame.

use published::error::{RedisProtocolError, RedisProtocolErrorKind};

/// Maximum number of aggregates (arrays, maps, sets, pushes and attributes) that enclose a value.
/// Replies of Redis commands have fewer than ten levels.
pub const MAX_DEPTH: usize = 32;

/// Checks the nesting depth of the first frame of a buffer, which may be incomplete.
///
/// Parses the union of RESP2 and RESP3, so neither decoder reaches a depth that this function does
/// not check. Stops at the first byte that neither protocol allows; the decoder then returns the
/// error. Reads each byte at most once and skips the contents of blobs.
///
/// # Errors
/// The frame is nested deeper than [`MAX_DEPTH`].
pub fn check_depth(buffer: &[u8]) -> Result<(), RedisProtocolError> {
    let mut rest = buffer;
    let mut missing = [0_usize; MAX_DEPTH];
    let mut depth = 0;
    while let Some(items) = next_header(&mut rest) {
        if items > 0 {
            let level = missing.get_mut(depth).ok_or_else(too_deep)?;
            *level = items;
            depth += 1;
            continue;
        }
        // A value is complete. It also completes each aggregate of which it is the last item.
        loop {
            let Some(level) = depth.checked_sub(1) else {
                return Ok(());
            };
            missing[level] -= 1;
            if missing[level] > 0 {
                break;
            }
            depth = level;
        }
    }
    Ok(())
}

fn too_deep() -> RedisProtocolError {
    RedisProtocolError::new(
        RedisProtocolErrorKind::DecodeError,
        "the reply is nested too deeply",
    )
}

/// Reads a scalar, or the first line of an aggregate, and advances `rest` past it. Returns the
/// number of items that follow, which is zero for a scalar, or `None` if the input is incomplete or
/// invalid.
fn next_header(rest: &mut &[u8]) -> Option<usize> {
    let (kind, after_kind) = rest.split_first()?;
    let end = after_kind.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, after_line) = (&after_kind[..end], &after_kind[end + 2..]);
    *rest = after_line;
    match kind {
        b'*' | b'~' | b'>' => length(line),
        b'%' => Some(length(line)?.saturating_mul(2)),
        // The keys and values of the attribute, and the frame that it describes.
        b'|' => Some(length(line)?.saturating_mul(2).saturating_add(1)),
        b'$' | b'!' | b'=' | b';' => {
            let length = length(line)?;
            // A null, the start of a streamed blob and its end have no contents.
            let has_contents = length > 0 || (*kind != b';' && !matches!(line, b"-1" | b"?"));
            if has_contents {
                *rest = after_line.get(length.checked_add(2)?..)?;
            }
            Some(0)
        }
        b'+' | b'-' | b':' | b',' | b'#' | b'_' | b'(' | b'.' | b'H' => Some(0),
        _ => None,
    }
}

/// Parses a length as the decoders do. The length of a null and of a stream is zero.
fn length(line: &[u8]) -> Option<usize> {
    match line {
        b"-1" | b"?" => Some(0),
        _ => str::from_utf8(line).ok()?.parse().ok(),
    }
}
