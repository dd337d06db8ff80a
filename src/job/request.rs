//! The request to generate a video.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The body of `POST /v1/videos`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VideoRequest {
    /// Configured name of the provider. Defaults to the configured default provider.
    #[serde(default)]
    pub provider: Option<String>,
    /// The provider's name of the model.
    pub model: String,
    /// Description of the video.
    #[serde(default)]
    pub prompt: String,
    /// Description of content to avoid.
    #[serde(default)]
    pub negative_prompt: Option<String>,
    /// URL of the first frame.
    #[serde(default)]
    pub image_url: Option<String>,
    /// Length in seconds.
    #[serde(default)]
    pub duration: Option<f64>,
    /// Ratio of width to height, such as `16:9`.
    #[serde(default)]
    pub aspect_ratio: Option<String>,
    /// Resolution, such as `720p` or `1080p`.
    #[serde(default)]
    pub resolution: Option<String>,
    /// Width in pixels. Requires `height`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// Height in pixels. Requires `width`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Preset for the dimensions that the request leaves open.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Provider-specific parameters, passed through unchanged.
    #[serde(default)]
    pub input: Map<String, Value>,
    /// Arbitrary data that is copied to the job document.
    #[serde(default)]
    pub metadata: Map<String, Value>,
    /// Mail address of the owner. It is not part of the stored request.
    #[serde(default, skip_serializing)]
    pub owner_email: Option<String>,
    /// URL that receives a webhook when the job ends. It is moved to the internal state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
}

/// A preset for the platform on which the video is published.
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
    /// Returns the name used in requests.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tiktok => "tiktok",
            Self::Youtube => "youtube",
            Self::Instagram => "instagram",
        }
    }

    /// Returns width and height in pixels and the aspect ratio.
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
    /// Returns the variables for the templates of a provider definition. Presets are applied, and
    /// fields without a value are absent.
    #[must_use]
    pub fn template_params(&self) -> BTreeMap<&'static str, Value> {
        let preset = self.platform.map(Platform::dimensions);
        let ratio = self
            .aspect_ratio
            .clone()
            .or(preset.map(|(_, _, ratio)| ratio.to_owned()));
        // An explicit resolution determines the size.
        let sides = preset.filter(|_| self.resolution.is_none());
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

/// Returns a JSON integer for a whole number, because some providers reject `5.0`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the number is whole and small"
)]
fn integer_if_whole(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 1e9 {
        Value::from(number as i64)
    } else {
        Value::from(number)
    }
}
