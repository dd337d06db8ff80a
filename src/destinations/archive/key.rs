//! Names of copies.

use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use serde_json::Value;

use crate::job::{Job, NewJob};
use crate::time::Time;

/// Maximum length of a value in a name, in characters.
const MAX_VALUE_CHARS: usize = 128;

/// Maximum length of a segment of a name, in bytes. File systems have this limit.
const MAX_SEGMENT_BYTES: usize = 240;

/// Maximum length of a name, in bytes. S3 allows 1,024 including the prefix.
const MAX_KEY_BYTES: usize = 800;

/// Maximum number of steps of one evaluation.
const MAX_EVALUATION_STEPS: u64 = 100_000;

/// The template of the name of a copy.
pub(super) struct KeyTemplate {
    source: String,
    environment: Environment<'static>,
}

impl KeyTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// A syntax error, an unknown name, or a name that is the same for different outputs.
    pub(super) fn parse(source: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(MAX_EVALUATION_STEPS));
        let template = environment.template_from_str(source);
        let template = template.map_err(|error| error.to_string())?;
        let mut unknown = template.undeclared_variables(false).into_iter();
        let unknown = unknown.find(|name| !["job", "n", "ext"].contains(&name.as_str()));
        if let Some(name) = unknown {
            return Err(format!("unknown name: {name}; known names are job, n, ext"));
        }
        let key = Self {
            source: source.to_owned(),
            environment,
        };
        let (first, second) = (example(), example());
        let keys = [(&first, 0), (&second, 0), (&first, 1)];
        let [one, other_job, other_output] = keys.map(|(job, n)| key.render(job, n, "mp4"));
        let one = one?;
        if one == other_job? || one == other_output? {
            return Err(
                "must use job.id and n, so that each output has a name of its own".to_owned(),
            );
        }
        Ok(key)
    }

    /// Returns the name of the copy of output `n`. It has the characters `A-Z a-z 0-9 . _ - /`, and no
    /// segment that is empty or consists of dots.
    ///
    /// # Errors
    /// The template fails, or the name is too long.
    pub(super) fn render(&self, job: &Job, n: usize, extension: &str) -> Result<String, String> {
        let job = serde_json::to_value(job).unwrap_or_default();
        let names = context! { job => safe_values(job), n, ext => extension };
        let rendered = self.environment.render_str(&self.source, names);
        let rendered = rendered.map_err(|error| error.kind().to_string())?;
        let segments = rendered.split('/').map(safe_text);
        let segments: Vec<String> = segments.filter(|segment| !segment.is_empty()).collect();
        let key = segments.join("/");
        let is_long = segments.iter().any(|it| it.len() > MAX_SEGMENT_BYTES);
        if key.is_empty() {
            Err("the name is empty".to_owned())
        } else if is_long || key.len() > MAX_KEY_BYTES {
            Err("the name is too long".to_owned())
        } else {
            Ok(key)
        }
    }
}

/// Replaces every text by a safe one, so that no value contains a separator.
fn safe_values(value: Value) -> Value {
    match value {
        Value::String(text) => {
            let text: String = text.chars().take(MAX_VALUE_CHARS).collect();
            safe_text(&text).into()
        }
        Value::Array(items) => items.into_iter().map(safe_values).collect(),
        Value::Object(fields) => {
            let fields = fields.into_iter();
            fields
                .map(|(name, value)| (name, safe_values(value)))
                .collect()
        }
        other @ (Value::Null | Value::Bool(_) | Value::Number(_)) => other,
    }
}

fn safe_text(text: &str) -> String {
    let safe = |character: char| match character {
        'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '_' | '-' => character,
        _ => '-',
    };
    let is_dots = text.chars().all(|character| character == '.');
    let text = text.chars().map(safe);
    if is_dots {
        text.map(|_| '-').collect()
    } else {
        text.collect()
    }
}

/// A job for the check of a template.
fn example() -> Job {
    let new = NewJob {
        owner: "owner".to_owned(),
        provider: None,
        provider_task_id: None,
        model: None,
        metadata: serde_json::Map::new(),
        request: None,
        deadline: std::time::Duration::ZERO,
    };
    Job::new(new, Time::from_millis(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: &str = "{{ job.owner }}/{{ job.id }}/{{ n }}.{{ ext }}";

    fn job(owner: &str) -> Job {
        Job {
            owner: owner.to_owned(),
            ..example()
        }
    }

    fn key(template: &str, job: &Job) -> String {
        KeyTemplate::parse(template)
            .unwrap()
            .render(job, 2, "mp4")
            .unwrap()
    }

    #[test]
    fn values_cannot_leave_their_segment() {
        for (owner, expected) in [
            ("alice", "alice"),
            ("auth0|5f7c", "auth0-5f7c"),
            ("..", "--"),
            ("../../etc", "..-..-etc"),
            ("a/b\\c", "a-b-c"),
            ("a b#c+d&e%2F", "a-b-c-d-e-2F"),
            ("s3://other/key", "s3---other-key"),
            ("ünïcode\n\0", "-n-code--"),
            ("{{ n }}", "---n---"),
        ] {
            let job = job(owner);
            assert_eq!(key(DEFAULT, &job), format!("{expected}/{}/2.mp4", job.id));
        }
    }

    #[test]
    fn templates_use_the_document() {
        let mut job = job("a");
        let metadata = serde_json::json!({ "team": "x/y", "tags": ["../a"] });
        job.metadata = metadata.as_object().unwrap().clone();
        job.created_at = Time::from_millis(1_800_000_000_000);
        let id = job.id.clone();
        for (template, expected) in [
            ("/{{ job.id }}//./{{ n }}", format!("{id}/-/2")),
            ("../{{ job.id }}-{{ n }}", format!("--/{id}-2")),
            (
                "{{ job.metadata.team }}/{{ job.metadata.none }}/{{ job.id }}/{{ n }}",
                format!("x-y/{id}/2"),
            ),
            (
                "{{ job.metadata.tags[0] }}/{{ job.id }}/{{ n }}",
                format!("..-a/{id}/2"),
            ),
            (
                "{{ job.created_at[:4] }}/{{ job.created_at[5:7] }}/{{ job.id }}.{{ n }}.{{ ext }}",
                format!("2027/01/{id}.2.mp4"),
            ),
        ] {
            assert_eq!(key(template, &job), expected, "{template}");
        }
    }

    #[test]
    fn templates_that_give_two_outputs_one_name_are_rejected() {
        let error = |template: &str| KeyTemplate::parse(template).err().unwrap();
        for template in [
            "",
            "/",
            "{{ job.owner }}/{{ n }}",
            "{{ job.id }}.{{ ext }}",
            "video.mp4",
        ] {
            assert!(!error(template).is_empty(), "{template}");
        }
        assert_eq!(
            error("{{ owner }}/{{ job.id }}/{{ n }}"),
            "unknown name: owner; known names are job, n, ext"
        );
        assert!(error("{{ job.id ").contains("syntax error"));
        assert!(error("{{ job.id|nonsense }}{{ n }}").contains("unknown filter"));
    }

    #[test]
    fn long_values_are_truncated_and_long_names_rejected() {
        let job = job(&"a".repeat(255));
        assert_eq!(
            key(DEFAULT, &job).split('/').next().unwrap().len(),
            MAX_VALUE_CHARS
        );
        let template = format!(
            "{}{{{{ job.id }}}}-{{{{ n }}}}",
            "x".repeat(MAX_SEGMENT_BYTES)
        );
        assert_eq!(
            KeyTemplate::parse(&template).err().unwrap(),
            "the name is too long"
        );
    }
}
