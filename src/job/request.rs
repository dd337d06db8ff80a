//! What a caller asks a provider for, and what the hub keeps of it.
//!
//! Invariant: nothing here is ever part of a job's document.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The body of `POST /v1/videos`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VideoRequest {
    /// The provider's name in the configuration; absent: the configured default.
    #[serde(default)]
    pub provider: Option<String>,
    /// The provider's name of the model.
    pub model: String,
    /// What to show.
    #[serde(default)]
    pub prompt: String,
    /// What not to show.
    #[serde(default)]
    pub negative_prompt: Option<String>,
    /// First frame, as a URL.
    #[serde(default)]
    pub image_url: Option<String>,
    /// Length in seconds.
    #[serde(default)]
    pub duration: Option<f64>,
    /// Width to height, as `16:9`.
    #[serde(default)]
    pub aspect_ratio: Option<String>,
    /// `720p`, `1080p` …
    #[serde(default)]
    pub resolution: Option<String>,
    /// Width in pixels; comes with a height.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// Height in pixels; comes with a width.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// A preset that fills in what was left open.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Parameters of the provider's own, passed on as they are.
    #[serde(default)]
    pub input: Map<String, Value>,
    /// The caller's own, shown in the document.
    #[serde(default)]
    pub metadata: Map<String, Value>,
}

/// Where the video is going to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Platform {
    /// 9:16, 720×1280.
    Tiktok,
    /// 16:9, 1280×720.
    Youtube,
    /// 1:1, 1024×1024.
    Instagram,
}

impl Platform {
    /// The word in requests.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tiktok => "tiktok",
            Self::Youtube => "youtube",
            Self::Instagram => "instagram",
        }
    }

    /// Width and height in pixels, and their ratio as providers write it.
    #[must_use]
    pub fn dimensions(self) -> (u32, u32, &'static str) {
        match self {
            Self::Tiktok => (720, 1280, "9:16"),
            Self::Youtube => (1280, 720, "16:9"),
            Self::Instagram => (1024, 1024, "1:1"),
        }
    }
}

impl VideoRequest {
    /// The request as a spec's templates see it: presets filled in, absent fields absent.
    #[must_use]
    pub fn template_params(&self) -> BTreeMap<&'static str, Value> {
        let frame = self.platform.map(Platform::dimensions);
        let ratio = self
            .aspect_ratio
            .clone()
            .or(frame.map(|(_, _, ratio)| ratio.to_owned()));
        // A resolution says it already.
        let sides = frame.filter(|_| self.resolution.is_none());
        let width = self.width.or(sides.map(|(width, _, _)| width));
        let height = self.height.or(sides.map(|(_, height, _)| height));
        let mut parameters = BTreeMap::new();
        parameters.insert("model", Value::from(self.model.as_str()));
        parameters.insert("prompt", Value::from(self.prompt.as_str()));
        parameters.insert("input", Value::Object(self.input.clone()));
        for (name, value) in [
            (
                "negative_prompt",
                self.negative_prompt.clone().map(Value::from),
            ),
            ("image_url", self.image_url.clone().map(Value::from)),
            ("duration", self.duration.map(integer_if_whole)),
            ("aspect_ratio", ratio.map(Value::from)),
            ("resolution", self.resolution.clone().map(Value::from)),
            ("width", width.map(Value::from)),
            ("height", height.map(Value::from)),
        ] {
            if let Some(value) = value {
                parameters.insert(name, value);
            }
        }
        parameters
    }
}

/// Providers want `5`, not `5.0`, where a number is whole.
#[expect(
    clippy::cast_possible_truncation,
    reason = "only where the number is whole and small"
)]
fn integer_if_whole(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 1e9 {
        Value::from(number as i64)
    } else {
        Value::from(number)
    }
}
