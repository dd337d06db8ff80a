//! Budget reservations of every built-in definition: prices are read from the bytes that are sent, and
//! no accepted request costs more than its reservation.
//!
//! The property test computes the price of a request from the bytes that a mock provider receives. It parses
//! them as leniently as a provider could: keys in any case, numbers as text, parameters in the prompt.

use std::sync::Arc;
use std::time::Duration;

use progress_hub::admission::AdmissionControl;
use progress_hub::config::Config;
use progress_hub::job::VideoRequest;
use progress_hub::links::Links;
use progress_hub::provider::{HttpClient, Providers};
use progress_hub::telemetry::Metrics;
use progress_hub::time::Time;
use progress_hub_auth::signature::CallbackKey;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::test_runner::{Config as TestConfig, TestCaseError, TestRunner};
use serde_json::{Map, Value, json};

use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};

/// Built-in definitions, with the location of the model and of the other parameters in their requests.
const SPECS: [(&str, ModelIn, &[&str]); 12] = [
    (
        "kling",
        ModelIn::Path {
            from: 1,
            suffix: "",
        },
        &["settings"],
    ),
    ("kling-legacy", ModelIn::Body("model_name"), &[]),
    ("atlas", ModelIn::Body("model"), &[]),
    (
        "fal",
        ModelIn::Path {
            from: 0,
            suffix: "",
        },
        &[],
    ),
    ("replicate", ModelIn::Replicate, &["input"]),
    ("runway", ModelIn::Body("model"), &[]),
    (
        "veo",
        ModelIn::Path {
            from: 2,
            suffix: ":predictlongrunning",
        },
        &["parameters"],
    ),
    ("minimax", ModelIn::Body("model"), &[]),
    ("videos", ModelIn::Body("model"), &[]),
    ("seedance", ModelIn::Body("model"), &[]),
    (
        "wavespeed",
        ModelIn::Path {
            from: 2,
            suffix: "",
        },
        &[],
    ),
    ("luma", ModelIn::Body("model"), &[]),
];

#[derive(Clone, Copy)]
enum ModelIn {
    Body(&'static str),
    Path {
        from: usize,
        suffix: &'static str,
    },
    /// The path of an official model, or the version in the body.
    Replicate,
}

/// Models with `dear` in their name cost 100 times as much. The resolution 1080p doubles the price.
const PRICES: &str = r#"{
    "*dear*" = "100 * (duration or 5) * (2 if resolution and '1080' in resolution else 1) * (count or 1)",
    "*" = "1 * (duration or 5) * (2 if resolution and '1080' in resolution else 1) * (count or 1)"
}"#;

fn config(url: &str) -> Config {
    let mut settings = vec![
        (
            "auth.hs256_secrets".to_owned(),
            crate::app::JWT_SECRET.to_owned(),
        ),
        ("budgets.per_job".to_owned(), "1000000".to_owned()),
    ];
    for (name, _, _) in SPECS {
        for (key, value) in [
            ("spec", name),
            ("base_url", url),
            ("api_key", "a key"),
            ("prices", PRICES),
        ] {
            settings.push((format!("providers.{name}.{key}"), value.to_owned()));
        }
    }
    let key = "providers.kling-legacy.secret_key".to_owned();
    settings.push((key, "another key".to_owned()));
    Config::load(None, std::iter::empty(), settings).unwrap()
}

/// Links of a hub with a public URL, so that every job has a callback URL.
fn links() -> Links {
    let public_url = "https://hub.example".parse().unwrap();
    let secret = "a callback secret that is long enough too";
    let key = CallbackKey::new(&secret.into()).unwrap();
    Links::new(Some(public_url), Some(key), Duration::from_secs(3600))
}

/// Returns the values of the keys that match `names`, at the top level and in the objects at `place`.
/// Ignores case, `_` and `-` in keys.
fn values<'a>(body: &'a Value, place: &[&str], names: &[&str]) -> Vec<&'a Value> {
    let normalize = |key: &str| key.to_lowercase().replace(['_', '-'], "");
    let mut maps: Vec<&Value> = vec![body];
    for key in place {
        let inner = body.as_object().into_iter().flatten();
        maps.extend(
            inner
                .filter(|(name, _)| normalize(name) == *key)
                .map(|(_, value)| value),
        );
    }
    let fields = maps.into_iter().filter_map(Value::as_object).flatten();
    fields
        .filter(|(key, _)| names.contains(&normalize(key).as_str()))
        .map(|(_, value)| value)
        .collect()
}

/// Returns the largest number that a lenient server could parse from a value.
fn number(value: &Value) -> f64 {
    match value {
        Value::Number(number) => number.as_f64().unwrap(),
        Value::String(text) => {
            let digits: String = text
                .chars()
                .filter(|it| it.is_ascii_digit() || *it == '.')
                .collect();
            digits.parse().unwrap_or(0.0)
        }
        Value::Array(items) => items.iter().map(number).fold(0.0, f64::max),
        Value::Object(fields) => fields.values().map(number).fold(0.0, f64::max),
        Value::Null | Value::Bool(_) => 0.0,
    }
}

/// Appends every string in the body to `found`, separated by spaces.
fn prompts(value: &Value, found: &mut String) {
    match value {
        Value::String(text) => {
            found.push(' ');
            found.push_str(text);
        }
        Value::Array(items) => items.iter().for_each(|item| prompts(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| prompts(field, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Returns the price of a request that the provider received.
fn price(spec: &str, model_in: ModelIn, place: &[&str], sent: &RecordedRequest) -> f64 {
    let body = &sent.body;
    // A server resolves dots and merges slashes.
    let mut path: Vec<String> = Vec::new();
    for part in sent.path.split('?').next().unwrap().split('/') {
        let part = part.to_lowercase().replace("%2f", "/").replace("%2e", ".");
        for part in part.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(path.pop()),
                part => path.push(part.to_owned()),
            }
        }
    }
    let mut models: Vec<String> = match model_in {
        ModelIn::Body(key) => values(body, &[], &[&key.replace('_', "")])
            .iter()
            .map(|it| it.to_string())
            .collect(),
        ModelIn::Path { from, suffix } => {
            let model = path[from..].join("/");
            vec![model.strip_suffix(suffix).unwrap_or(&model).to_owned()]
        }
        ModelIn::Replicate if path.get(1).is_some_and(|part| part == "models") => {
            vec![path[2..].join("/")]
        }
        ModelIn::Replicate => values(body, &[], &["version"])
            .iter()
            .map(|it| it.to_string())
            .collect(),
    };
    models
        .iter_mut()
        .for_each(|model| *model = model.to_lowercase());
    let rate = if models.iter().any(|model| model.contains("dear")) {
        100.0
    } else {
        1.0
    };
    let most = |names: &[&str]| {
        let values = values(body, place, names);
        values.into_iter().map(number).fold(0.0, f64::max)
    };
    let mut duration = most(&["duration", "durationseconds", "seconds"]);
    let resolutions = values(body, place, &["resolution", "size", "quality"]);
    let mut is_large = resolutions.iter().any(|it| it.to_string().contains("1080"));
    if spec == "seedance" {
        let mut text = String::new();
        prompts(body, &mut text);
        let words: Vec<&str> = text.split_whitespace().collect();
        for pair in words.windows(2) {
            match pair[0].to_lowercase().as_str() {
                "--duration" | "--dur" => duration = duration.max(number(&json!(pair[1]))),
                "--resolution" | "--rs" => is_large |= pair[1].contains("1080"),
                _ => {}
            }
        }
    }
    let count = most(&["numvideos", "samplecount", "n", "count", "numoutputs"]).max(1.0);
    let instances = values(body, &[], &["instances"]);
    let instances = instances
        .iter()
        .filter_map(|it| it.as_array())
        .map(Vec::len)
        .max();
    let duration = if duration == 0.0 { 5.0 } else { duration };
    let size = if is_large { 2.0 } else { 1.0 };
    rate * duration * size * count * instances.unwrap_or(1).max(1) as f64
}

const KEYS: [&str; 36] = [
    "model",
    "Model",
    "MODEL",
    "model_name",
    "modelName",
    "version",
    "duration",
    "Duration",
    "durationSeconds",
    "seconds",
    "settings",
    "Settings",
    "options",
    "parameters",
    "input",
    "instances",
    "content",
    "contents",
    "callback_url",
    "webhook",
    "num_videos",
    "sampleCount",
    "n",
    "resolution",
    "Resolution",
    "size",
    "quality",
    "mode",
    "prompt",
    "text",
    "external_task_id",
    "seed",
    "loop",
    "watermark",
    "settings.duration",
    "aspect_ratio",
];

const TEXTS: [&str; 12] = [
    "60",
    "60s",
    " 60 ",
    "6e1",
    "dear",
    "own/dear",
    "1080p",
    "1080P",
    "a boat --duration 60",
    "--resolution 1080p --dur 60",
    "../dear",
    "",
];

const MODELS: [&str; 22] = [
    "cheap",
    "dear",
    "DEAR",
    "Dear",
    "./dear",
    "dear/",
    "dear/.",
    "/dear",
    "a/../dear",
    "x//dear",
    "own/dear",
    "own/cheap",
    "own/cheap:dear",
    "cheap:dear",
    "dear:cheap",
    "cheap/dear",
    "MiniMax-H3-dear",
    "MiniMax-H3",
    "%64ear",
    "cheap?model=dear",
    "cheap#dear",
    "cheap:predictLongRunning",
];

fn hostile_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![Just(0), Just(1), Just(8), Just(60), Just(-1)].prop_map(Value::from),
        Just(json!(60.5)),
        proptest::sample::select(&TEXTS[..]).prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Value::from),
            btree_map(proptest::sample::select(&KEYS[..]), inner, 0..4).prop_map(|fields| {
                let fields = fields
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value));
                Value::Object(fields.collect())
            }),
        ]
    })
}

fn hostile_request() -> impl Strategy<Value = VideoRequest> {
    let input = btree_map(proptest::sample::select(&KEYS[..]), hostile_value(), 0..3);
    let model = proptest::sample::select(&MODELS[..]);
    let prompt = prop_oneof![Just("a boat"), proptest::sample::select(&TEXTS[..])];
    let duration = proptest::option::of(prop_oneof![Just(1.0), Just(5.0), Just(60.0), Just(0.5)]);
    let resolution = proptest::option::of(prop_oneof![Just("720p"), Just("1080p")]);
    (model, prompt, duration, resolution, input).prop_map(
        |(model, prompt, duration, resolution, input)| VideoRequest {
            model: model.to_owned(),
            prompt: prompt.to_owned(),
            duration,
            resolution: resolution.map(str::to_owned),
            input: input
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect::<Map<_, _>>(),
            ..VideoRequest::default()
        },
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn no_accepted_request_costs_more_than_it_reserved() {
    let provider = MockProvider::start(|_| async { MockResponse::json(400, &json!({})) }).await;
    let config = config(&provider.url);
    let providers = Providers::load(&config, &HttpClient::new().unwrap())
        .ok()
        .unwrap();
    let links = links();
    let admission = AdmissionControl::new(&config, links.clone(), Arc::new(Metrics::new()));
    let runtime = tokio::runtime::Handle::current();
    let hunt = move || {
        let settings = TestConfig {
            cases: 600,
            failure_persistence: None,
            ..TestConfig::default()
        };
        let accepted = std::cell::Cell::new(0);
        let mut runner = TestRunner::new(settings);
        let result = runner.run(&(0..SPECS.len(), hostile_request()), |(spec, request)| {
            let (name, model_in, place) = SPECS[spec];
            let to = providers.get(name).unwrap();
            let Ok(admitted) = admission.admit("alice", to, request, Time::now()) else {
                return Ok(());
            };
            let reservation = admitted.job.internal.reservation.as_ref().unwrap();
            let reserved = reservation.amount_micros as f64 / 1e6;
            let before = provider.requests().len();
            to.breaker().reset();
            let permit = to
                .breaker()
                .try_acquire_submits(1, Time::now())
                .pop()
                .unwrap();
            let callback = links.callback_url(name, &admitted.job.id);
            runtime.block_on(to.submit(permit, &admitted.job, callback.as_ref()));
            let sent = provider.requests();
            let Some(sent) = sent.get(before) else {
                return Err(TestCaseError::fail("accepted, but not sent"));
            };
            let cost = price(name, model_in, place, sent);
            accepted.set(accepted.get() + 1);
            prop_assert!(
                cost <= reserved + 1e-6,
                "{} {}: costs {}, reserved {}: {}",
                name,
                sent.path,
                cost,
                reserved,
                sent.body
            );
            Ok(())
        });
        (result, accepted.get())
    };
    let (result, accepted) = tokio::task::spawn_blocking(hunt).await.unwrap();
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(accepted > 50, "only {accepted} requests were accepted");
}

/// A definition can also put the current time into a request (`now`). No built-in one does so in the
/// URL or the body.
#[tokio::test(flavor = "multi_thread")]
async fn admission_reads_the_url_and_the_body_that_are_sent() {
    let definitions = std::fs::read_dir("src/provider/specs").unwrap();
    let mut definitions: Vec<String> = definitions
        .map(|file| file.unwrap().path().file_stem().unwrap().to_owned())
        .map(|name| name.into_string().unwrap())
        .filter(|name| name != "generic")
        .collect();
    definitions.sort();
    let mut tested: Vec<&str> = SPECS.iter().map(|(name, _, _)| *name).collect();
    tested.sort_unstable();
    assert_eq!(definitions, tested);

    let provider = MockProvider::start(|_| async { MockResponse::json(400, &json!({})) }).await;
    let config = config(&provider.url);
    let providers = Providers::load(&config, &HttpClient::new().unwrap())
        .ok()
        .unwrap();
    let links = links();
    let admission = AdmissionControl::new(&config, links.clone(), Arc::new(Metrics::new()));
    for (name, _, _) in SPECS {
        let to = providers.get(name).unwrap();
        let request = VideoRequest {
            model: "own/cheap".to_owned(),
            prompt: "a boat".to_owned(),
            duration: Some(5.0),
            resolution: Some("720p".to_owned()),
            ..VideoRequest::default()
        };
        let admitted = admission.admit("alice", to, request, Time::now()).unwrap();
        let read = admission.render(to, &admitted.job).unwrap();
        let read = read.variables();
        let permit = to.breaker().try_acquire_submits(1, Time::now()).pop();
        let callback = links.callback_url(name, &admitted.job.id).unwrap();
        to.submit(permit.unwrap(), &admitted.job, Some(&callback))
            .await;
        let sent = provider.requests().pop().unwrap();
        assert_eq!(sent.body, read["body"], "{name}");
        let (path, query) = match sent.path.split_once('?') {
            None => (sent.path.as_str(), None),
            Some((path, query)) => (path, Some(query)),
        };
        let segments = path.split('/').skip(1);
        let path: Vec<String> = segments.map(|part| part.replace("%2F", "/")).collect();
        assert_eq!(
            (json!(path), json!(query)),
            (read["path"].clone(), read["query"].clone()),
            "{name}"
        );
        // Some providers have no callback URLs for single jobs.
        if to.sends_callback_url() {
            let token = callback.path_segments().unwrap().next_back().unwrap();
            let request = format!("{} {}", sent.path, sent.body);
            assert!(request.contains(token), "{name}: {request}");
        }
    }
}
