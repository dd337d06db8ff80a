//! Platform presets and the resolution limit of a tier.
//!
//! Invariant: below the production tier, a request passes only if every size in it, including those
//! in `input`, is known to be at most 720p.

use serde_json::{Map, Value};

use super::AdmissionError;
use crate::config::Tier;
use crate::job::VideoRequest;
use crate::provider::Submission;

/// Maximum length of the shorter side below the production tier, in pixels.
const MAX_SHORT_SIDE: u32 = 720;

/// Fills in the dimensions of the requested platform, and rejects a request that contradicts them.
pub(super) fn apply_platform_preset(request: &mut VideoRequest) -> Result<(), AdmissionError> {
    let Some(platform) = request.platform else {
        return Ok(());
    };
    let (width, height, ratio) = platform.dimensions();
    let contradicts = |sides: (u32, u32)| {
        u64::from(sides.0) * u64::from(height) != u64::from(sides.1) * u64::from(width)
    };
    for (field, value) in [
        ("aspect_ratio", &request.aspect_ratio),
        ("resolution", &request.resolution),
    ] {
        if let Some(value) = value
            && parse_dimensions(value).is_some_and(contradicts)
        {
            return Err(AdmissionError::Parameters(format!(
                "{field}: '{value}' contradicts the platform '{}', which is {ratio}",
                platform.as_str()
            )));
        }
    }
    if let Some((w, h)) = request
        .width
        .zip(request.height)
        .filter(|&sides| contradicts(sides))
    {
        return Err(AdmissionError::Parameters(format!(
            "width, height: {w}x{h} contradicts the platform '{}', which is {ratio}",
            platform.as_str()
        )));
    }
    request.aspect_ratio.get_or_insert_with(|| ratio.to_owned());
    // An explicit resolution determines the size. The platform provides the default.
    let requested = request.resolution.as_deref().map(short_side);
    if let Some(short) = requested.unwrap_or(Some(width.min(height))) {
        let (width, height) = scaled(width, height, short);
        request.width.get_or_insert(width);
        request.height.get_or_insert(height);
    }
    Ok(())
}

/// Caps the request to 720p.
pub(super) fn cap_to_tier(request: &mut VideoRequest, tier: Tier) -> Result<(), AdmissionError> {
    let max = format!("{MAX_SHORT_SIDE}p");
    let resolution = request.resolution.take().unwrap_or_else(|| max.clone());
    request.resolution = match short_side(&resolution) {
        None => return Err(unknown_resolution("resolution", &resolution, tier)),
        Some(side) if side <= MAX_SHORT_SIDE => Some(resolution),
        Some(_) => {
            // The pixel dimensions imply an aspect ratio, which `720p` does not.
            if let Some((width, height)) = parse_dimensions(&resolution) {
                let ratio = || ratio(width, height);
                request.aspect_ratio.get_or_insert_with(ratio);
            }
            Some(max)
        }
    };
    if let Some((width, height)) = request.width.zip(request.height) {
        let (width, height) = scaled(width, height, MAX_SHORT_SIDE.min(width.min(height)));
        (request.width, request.height) = (Some(width), Some(height));
    }
    // Some providers accept pixels as an aspect ratio, such as `1920:1080`.
    if let Some((width, height)) = request.aspect_ratio.as_deref().and_then(parse_dimensions)
        && width.min(height) > MAX_SHORT_SIDE
    {
        let (width, height) = scaled(width, height, MAX_SHORT_SIDE);
        request.aspect_ratio = Some(format!("{width}:{height}"));
    }
    check_object(&request.input, "input", tier)
}

/// Checks that no frame size in the rendered request exceeds the limit of the tier.
pub(super) fn check_rendered(submission: &Submission, tier: Tier) -> Result<(), AdmissionError> {
    check_object(submission.variables(), "request", tier)
}

fn unknown_resolution(path: &str, value: &str, tier: Tier) -> AdmissionError {
    let tier = tier.as_str();
    AdmissionError::Parameters(format!(
        "{path}: '{value}' cannot be compared with {MAX_SHORT_SIDE}p, the limit of the tier {tier}"
    ))
}

/// Scales both sides so that the shorter one has `to` pixels. Changed sides are rounded down to
/// even numbers, which video encoders require.
fn scaled(width: u32, height: u32, to: u32) -> (u32, u32) {
    let short = width.min(height);
    if short == to {
        return (width, height);
    }
    let scale = |side: u32| {
        let side = u64::from(side) * u64::from(to) / u64::from(short.max(1));
        u32::try_from(side).unwrap_or(u32::MAX) & !1
    };
    (scale(width), scale(height))
}

fn ratio(width: u32, height: u32) -> String {
    let (mut a, mut b) = (width, height);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    format!("{}:{}", width / a.max(1), height / a.max(1))
}

/// Parses two numbers, such as `1920x1080`, `1920*1080` or `16:9`.
fn parse_dimensions(text: &str) -> Option<(u32, u32)> {
    let (width, height) = text.split_once(['x', 'X', '×', '*', ':', '/'])?;
    let side = |text: &str| text.trim().parse().ok().filter(|side| *side > 0);
    Some((side(width)?, side(height)?))
}

/// Returns the shorter side in pixels of a named or numeric resolution.
fn short_side(resolution: &str) -> Option<u32> {
    let name = resolution
        .trim()
        .to_lowercase()
        .replace([' ', '_', '-'], "");
    if let Some((width, height)) = parse_dimensions(&name) {
        let short = width.min(height);
        // Smaller numbers are an aspect ratio, not a size.
        return (short >= 64).then_some(short);
    }
    let named = match name.as_str() {
        "sd" => Some(480),
        "hd" => Some(720),
        "1k" => Some(1024),
        "fhd" | "fullhd" => Some(1080),
        "qhd" | "wqhd" => Some(1440),
        "uhd" | "ultrahd" => Some(2160),
        _ => None,
    };
    let lines = || name.strip_suffix(['p', 'i']).unwrap_or(&name).parse().ok();
    // 2K has 1080 lines and 4K has 2160.
    let thousands = || {
        let count: u32 = name.strip_suffix('k')?.parse().ok()?;
        Some(count.saturating_mul(540))
    };
    named.or_else(thousands).or_else(lines)
}

/// Checks that no size in `fields` exceeds the limit of the tier.
fn check_object(fields: &Map<String, Value>, path: &str, tier: Tier) -> Result<(), AdmissionError> {
    let side = |name| fields.get(name).filter(|value| !value.is_null());
    let both = side("width")
        .and_then(pixels)
        .zip(side("height").and_then(pixels));
    for (name, value) in fields {
        let path = format!("{path}.{name}");
        let short_side_of = |name: &str| match name {
            "width" | "height" => Some(both.map(|(w, h)| w.min(h)).or_else(|| pixels(value))),
            "ratio" | "aspectratio" => {
                let sides = value.as_str().and_then(parse_dimensions);
                sides.map(|(w, h)| Some(w.min(h)))
            }
            "size" | "imagesize" | "videosize" | "framesize" => Some(size(value)),
            name if name.ends_with("resolution") => Some(size(value)),
            _ => None,
        };
        let normalized = name.to_lowercase().replace(['_', '-'], "");
        match (short_side_of(&normalized), value) {
            (_, Value::Null | Value::Object(_)) | (None, _) => {}
            (Some(Some(short)), _) if short <= MAX_SHORT_SIDE => {}
            (Some(Some(_)), _) => {
                return Err(AdmissionError::Parameters(format!(
                    "{path}: {value} exceeds {MAX_SHORT_SIDE}p, the limit of the tier {}",
                    tier.as_str()
                )));
            }
            (Some(None), _) => {
                let text = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                return Err(unknown_resolution(&path, &text, tier));
            }
        }
        check_value(value, &path, tier)?;
    }
    Ok(())
}

fn check_value(value: &Value, path: &str, tier: Tier) -> Result<(), AdmissionError> {
    match value {
        Value::Object(fields) => check_object(fields, path, tier),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(at, item)| check_value(item, &format!("{path}[{at}]"), tier)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

/// Returns the shorter side of a size given as a name, a number or a pair of numbers.
fn size(value: &Value) -> Option<u32> {
    match value {
        Value::String(name) => short_side(name),
        Value::Array(sides) => {
            let sides: Option<Vec<u32>> = sides.iter().map(pixels).collect();
            sides.filter(|sides| sides.len() == 2)?.into_iter().min()
        }
        Value::Number(_) => pixels(value),
        Value::Null | Value::Bool(_) | Value::Object(_) => None,
    }
}

/// Parses a number of pixels, rounded up.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, as intended"
)]
fn pixels(value: &Value) -> Option<u32> {
    match value {
        Value::Number(number) => number.as_f64().map(|side| side.ceil() as u32),
        Value::String(text) => text.trim().trim_end_matches("px").parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::job::Platform;

    fn capped(mut request: VideoRequest) -> Result<VideoRequest, String> {
        apply_platform_preset(&mut request)
            .and_then(|()| cap_to_tier(&mut request, Tier::Staging))
            .map(|()| request)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_resolution_above_720p_is_capped() {
        for name in [
            "1080p",
            "1080P",
            "4k",
            "2K",
            "8k",
            "1920x1080",
            "1080x1920",
            "1920*1080",
            "fhd",
            "Full HD",
            "UHD",
            "qhd",
            "1440p",
            "1080",
            "721p",
            "1k",
            "1080i",
            "1920 × 1080",
        ] {
            let resolution = Some(name.to_owned());
            let request = VideoRequest {
                resolution,
                ..VideoRequest::default()
            };
            let request = capped(request).unwrap();
            assert_eq!(request.resolution.as_deref(), Some("720p"), "{name}");
        }
        for name in [
            "720p", "hd", "480p", "SD", "1280x720", "720x1280", "540", "512P",
        ] {
            let resolution = Some(name.to_owned());
            let request = VideoRequest {
                resolution,
                ..VideoRequest::default()
            };
            let request = capped(request).unwrap();
            assert_eq!(request.resolution.as_deref(), Some(name), "unchanged");
        }
        for name in ["best", "", "16:9", "p", "k", "1080pp", "square_hd"] {
            let resolution = Some(name.to_owned());
            let request = VideoRequest {
                resolution,
                ..VideoRequest::default()
            };
            let problem = capped(request).unwrap_err();
            assert!(problem.starts_with("resolution: "), "{name}: {problem}");
        }
        let request = capped(VideoRequest::default()).unwrap();
        assert_eq!(request.resolution.as_deref(), Some("720p"));
    }

    #[test]
    fn capping_preserves_the_aspect_ratio() {
        let square = VideoRequest {
            platform: Some(Platform::Instagram),
            ..VideoRequest::default()
        };
        let square = capped(square).unwrap();
        assert_eq!((square.width, square.height), (Some(720), Some(720)));
        let tall = VideoRequest {
            resolution: Some("1080x1920".to_owned()),
            ..VideoRequest::default()
        };
        assert_eq!(capped(tall).unwrap().aspect_ratio.as_deref(), Some("9:16"));
        let wide = VideoRequest {
            width: Some(3413),
            height: Some(1439),
            aspect_ratio: Some("1920:1080".to_owned()),
            ..VideoRequest::default()
        };
        let wide = capped(wide).unwrap();
        assert_eq!((wide.width, wide.height), (Some(1706), Some(720)));
        assert_eq!(wide.aspect_ratio.as_deref(), Some("1280:720"));
    }

    #[test]
    fn resolution_overrides_the_platform_default_size() {
        let filled = |platform, resolution: &str| {
            let mut request = VideoRequest {
                platform: Some(platform),
                resolution: Some(resolution.to_owned()),
                ..VideoRequest::default()
            };
            apply_platform_preset(&mut request)
                .map(|()| request.width.zip(request.height))
                .map_err(|error| error.to_string())
        };
        for (platform, resolution, sides) in [
            (Platform::Tiktok, "1080p", Some((1080, 1920))),
            (Platform::Tiktok, "720p", Some((720, 1280))),
            (Platform::Youtube, "4k", Some((3840, 2160))),
            (Platform::Instagram, "720p", Some((720, 720))),
            (Platform::Youtube, "1920x1080", Some((1920, 1080))),
            (Platform::Youtube, "best", None),
        ] {
            assert_eq!(filled(platform, resolution), Ok(sides), "{resolution}");
        }
        assert_eq!(
            filled(Platform::Tiktok, "1920x1080").unwrap_err(),
            "resolution: '1920x1080' contradicts the platform 'tiktok', which is 9:16"
        );
    }

    #[test]
    fn sizes_in_input_are_capped() {
        let check = |input: Value| {
            let input = input.as_object().unwrap().clone();
            capped(VideoRequest {
                input,
                ..VideoRequest::default()
            })
            .err()
        };
        for (input, path) in [
            (json!({"resolution": "1080p"}), "input.resolution"),
            (json!({"a": [{"Size": "1024x1024"}]}), "input.a[0].Size"),
            (json!({"width": 1920, "height": 1080}), "input.height"),
            (json!({"p": {"height": "1080"}}), "input.p.height"),
            (json!({"width": 1280}), "input.width"),
            (
                json!({"output_resolution": "4k"}),
                "input.output_resolution",
            ),
            (json!({"videoResolution": 1080}), "input.videoResolution"),
            (json!({"size": [1920, 1080]}), "input.size"),
            (
                json!({"image_size": {"width": 1024, "height": 1024}}),
                "input.image_size.height",
            ),
            (json!({"image_size": "landscape_16_9"}), "input.image_size"),
            (json!({"resolution": true}), "input.resolution"),
            (json!({"ratio": "1920:1080"}), "input.ratio"),
        ] {
            let problem = check(input.clone()).unwrap_or_default();
            assert!(
                problem.starts_with(&format!("{path}: ")),
                "{input}: {problem}"
            );
        }
        for input in [
            json!({"resolution": "720p", "size": null, "batch_size": 4096, "ratio": "16:9"}),
            json!({"width": 1280, "height": 720, "aspect_ratio": "auto"}),
            json!({"a": [{"size": "480p"}], "seed": 4_294_967_295_u32, "resolution": 720}),
        ] {
            assert_eq!(check(input.clone()), None, "{input}");
        }
    }

    #[test]
    fn platform_and_conflicting_aspect_ratio_are_rejected() {
        let of = |ratio: &str| {
            let mut request = VideoRequest {
                platform: Some(Platform::Tiktok),
                aspect_ratio: Some(ratio.to_owned()),
                ..VideoRequest::default()
            };
            apply_platform_preset(&mut request)
                .map(|()| request)
                .map_err(|error| error.to_string())
        };
        for ratio in ["9:16", "720:1280", "9/16", "auto"] {
            let request = of(ratio).unwrap();
            assert_eq!(request.aspect_ratio.as_deref(), Some(ratio));
            assert_eq!((request.width, request.height), (Some(720), Some(1280)));
        }
        assert_eq!(
            of("16:9").unwrap_err(),
            "aspect_ratio: '16:9' contradicts the platform 'tiktok', which is 9:16"
        );
    }
}
