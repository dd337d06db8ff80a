use serde_json::json;

use super::*;

/// Texts that try to change the structure of the output.
const HOSTILE: [&str; 8] = [
    "\"}, \"admin\": true, \"x\": {\"",
    "\\",
    "\\\"",
    "line\r\nBcc: victim@example.com",
    "</p><script>alert(1)</script>",
    "{{ 7 * 7 }} {% raw %}",
    "\u{FDD0}\u{FDD1}null\u{FDD2}\u{0}\u{1F}",
    "😀 ünïcödé \u{2028}",
];

fn document(title: &str) -> String {
    let sample = sample::document(Event::Succeeded);
    let Json::Object(mut job) = sample else {
        panic!("a document is an object");
    };
    job.insert("metadata".to_owned(), json!({ "title": title, "n": 3 }));
    Json::Object(job).to_string()
}

fn render(source: &str, kind: Kind, title: &str) -> String {
    let template = Template::parse(source, kind).unwrap();
    template.render(&document(title), "job.succeeded").unwrap()
}

fn render_json(source: &str, title: &str) -> Json {
    serde_json::from_str(&render(source, Kind::Json, title)).unwrap()
}

fn problem(source: &str, kind: Kind) -> String {
    Template::parse(source, kind).unwrap_err().to_string()
}

#[test]
fn user_text_cannot_break_json() {
    let source = r#"{
        "inside": "title: {{ job.metadata.title }}!",
        "outside": {{ job.metadata.title }},
        "computed": {{ "title: " ~ job.metadata.title }},
        "filtered": "{{ job.metadata.title|replace('x', 'x') }}",
        "nested": {{ job.metadata }},
        "json": {{ job.metadata.title|tojson }}
    }"#;
    for title in HOSTILE {
        let shown = title.replace(json::MARKS, "");
        let body = render_json(source, title);
        assert_eq!(body["inside"], format!("title: {shown}!"));
        assert_eq!(body["outside"], shown);
        assert_eq!(body["computed"], format!("title: {shown}"));
        assert_eq!(body["filtered"], shown);
        assert_eq!(body["nested"], json!({ "title": shown, "n": 3 }));
        assert_eq!(body["json"], shown);
        assert_eq!(body.as_object().unwrap().len(), 6);
    }
}

#[test]
fn blocks_that_are_rendered_first_become_one_text() {
    let source = r#"{% set text %}"{{ job.metadata.title }}" is ready{% endset -%}
        {"outside": {{ text }}, "inside": "{{ text|upper }}"}"#;
    for title in HOSTILE {
        let shown = title.replace(json::MARKS, "");
        let body = render_json(source, title);
        let expected = format!("\"{shown}\" is ready");
        assert_eq!(body["outside"], expected);
        assert_eq!(body["inside"], expected.to_uppercase());
    }
}

#[test]
fn json_values_keep_their_type_outside_of_strings() {
    let source = r#"{"n": {{ job.metadata.n }}, "null": {{ job.error }}, "missing": {{ job.metadata.none }},
        "bool": {{ job.final }}, "list": {{ job.outputs|map(attribute="url") }},
        "text": "{{ job.metadata.n }} {{ job.error }}{{ job.final }} {{ job.metadata }}"}"#;
    let body = render_json(source, "a\"b");
    assert_eq!(
        body,
        json!({"n": 3, "null": null, "missing": null, "bool": true,
            "list": ["https://cdn.example.com/video.mp4"],
            "text": "3 true {\"n\":3,\"title\":\"a\\\"b\"}"})
    );
}

#[test]
fn line_breaks_in_json_strings_are_escaped() {
    let body = render_json("{\"text\": \"a\nb\t{{ event }}\"}", "");
    assert_eq!(body, json!({"text": "a\nb\tjob.succeeded"}));
}

#[test]
fn value_after_a_backslash_is_rejected() {
    let problem = problem(r#"{"path": "C:\{{ job.id }}"}"#, Kind::Json);
    assert_eq!(problem, "a value must not follow a backslash");
}

#[test]
fn html_is_escaped_and_text_is_not() {
    let source = "<p>{{ job.metadata.title }}</p>";
    for title in HOSTILE {
        let html = render(source, Kind::Html, title);
        let inner = html.strip_prefix("<p>").unwrap().strip_suffix("</p>");
        assert!(!inner.unwrap().contains(['<', '>', '"', '\'']), "{html}");
        assert_eq!(render(source, Kind::Text, title), format!("<p>{title}</p>"));
    }
}

#[test]
fn missing_values_are_empty_in_text_and_errors_in_strict_templates() {
    for source in [
        "{{ job.error }}",
        "{{ job.metadata.a.b.c }}",
        "{{ job.error.message }}",
    ] {
        for kind in [Kind::Text, Kind::Html] {
            assert_eq!(render(source, kind, ""), "", "{source}");
        }
        let strict = Template::parse(source, Kind::Strict).unwrap();
        assert!(strict.render(&document(""), "").is_err(), "{source}");
    }
    assert_eq!(render("{{ job.owner }}", Kind::Strict, ""), "ada");
}

#[test]
fn invalid_templates_are_rejected_with_their_line() {
    for (source, expected) in [
        ("a\n{{ job.id", "line 2: syntax error"),
        ("a\n\n{{ job.id|shout }}", "line 3: unknown filter"),
        (
            "{{ fetch() }}",
            "line 1: unknown name: fetch; known names are event, job",
        ),
        (
            "a\n{{ job.stauts }}",
            "line 2: unknown name: job.stauts; fields of job are attempt,",
        ),
        (
            "{{ job.error.mesage }}",
            "line 1: unknown name: job.error.mesage",
        ),
        (
            "{{ job.owner_email }}",
            "line 1: unknown name: job.owner_email",
        ),
        (
            "\n{% if job.status == 'failed' %}{{ [] + 1 }}{% endif %}",
            "line 2: ",
        ),
    ] {
        for kind in [Kind::Text, Kind::Html, Kind::Strict] {
            let problem = problem(source, kind);
            assert!(problem.starts_with(expected), "{problem}");
        }
    }
    for source in ["", "{", "{\"a\": }", "{} {}", "{\"a\": {{ job.id|safe }}}"] {
        let problem = problem(source, Kind::Json);
        assert!(problem.starts_with("output is not JSON: "), "{problem}");
    }
}

#[test]
fn output_for_every_event_is_checked() {
    let source = r#"{"url": {% if job.outputs %}"{{ job.outputs[0].url }}"{% endif %}}"#;
    assert!(problem(source, Kind::Json).starts_with("output is not JSON"));
}

#[test]
fn size_and_steps_are_limited() {
    let long =
        "{% for i in range(9000) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}";
    assert_eq!(
        problem(long, Kind::Text),
        "output is longer than 262144 bytes"
    );
    let endless = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}";
    assert!(problem(endless, Kind::Text).contains("fuel"));
}

#[test]
fn further_names_come_from_the_samples() {
    let samples: Vec<Context> = Context::samples()
        .into_iter()
        .map(|sample| {
            sample
                .with("n", 0)
                .with_job_field("owner_email", "ada@example.com")
        })
        .collect();
    let source = "{{ job.owner_email }}/{{ n }}";
    let template = Template::parse_with(source, Kind::Strict, &samples).unwrap();
    assert_eq!(
        template.render_in(&samples[0]).unwrap(),
        "ada@example.com/0"
    );
    assert_eq!(
        template.paths().unwrap(),
        ["job.owner_email".to_owned(), "n".to_owned()].into()
    );
    assert!(Template::parse(source, Kind::Strict).is_err());
    let computed = Template::parse("{{ job['owner'] }}", Kind::Strict).unwrap();
    assert_eq!(computed.paths().unwrap(), ["job".to_owned()].into());
}
