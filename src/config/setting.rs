//! What a declaration of a setting consists of, and the macro that makes a section of them.

use std::collections::BTreeMap;

use toml::Value;

use super::layers::RawValue;
use super::reader::{Reader, SectionReader};

/// A parsed value, or its errors. An error is a message and a suffix for the key, which is empty
/// unless the error is about one entry of a table.
pub(super) type Parsed<T> = Result<T, Vec<(String, String)>>;

/// Returns one error about the whole value.
pub(super) fn invalid<T>(message: impl Into<String>) -> Parsed<T> {
    Err(vec![(String::new(), message.into())])
}

/// How the values of a setting are parsed and printed. The messages of errors must not contain the
/// value, because it may be a secret.
pub(super) struct Kind<T> {
    pub(super) parse: Box<dyn Fn(RawValue) -> Parsed<T>>,
    /// Prints a value without secrets, in a form that `parse` accepts.
    pub(super) print: Box<dyn Fn(&T) -> Value>,
    /// Bounds for the documentation, or an empty string.
    pub(super) limits: String,
}

/// A kind of value and its default.
pub(super) struct Declaration<T> {
    kind: Kind<T>,
    default: T,
    documented_default: String,
    /// Error if the setting is absent.
    required: Option<&'static str>,
}

impl<T: 'static> Kind<T> {
    pub(super) fn new(
        parse: impl Fn(RawValue) -> Parsed<T> + 'static,
        print: impl Fn(&T) -> Value + 'static,
    ) -> Self {
        Self {
            parse: Box::new(parse),
            print: Box::new(print),
            limits: String::new(),
        }
    }

    /// Documents the bounds of a value.
    pub(super) fn limits(self, limits: impl Into<String>) -> Self {
        Self {
            limits: limits.into(),
            ..self
        }
    }

    /// Declares a default value.
    pub(super) fn or(self, default: T) -> Declaration<T> {
        let printed = (self.print)(&default);
        let printed = printed
            .as_str()
            .map_or_else(|| printed.to_string(), str::to_owned);
        self.declare(default, format!("`{printed}`"))
    }

    /// Declares a list or table that is empty by default.
    pub(super) fn or_empty(self) -> Declaration<T>
    where
        T: Default,
    {
        self.declare(T::default(), "none".to_owned())
    }

    /// Declares a setting that may be absent.
    pub(super) fn or_none(self) -> Declaration<Option<T>> {
        self.optional("none")
    }

    /// Declares a setting whose default comes from the provider definition.
    pub(super) fn or_definition(self) -> Declaration<Option<T>> {
        self.optional("the definition's")
    }

    /// Declares a setting without default. `message` is the error if it is absent.
    pub(super) fn required(self, message: &'static str) -> Declaration<T>
    where
        T: Default,
    {
        Declaration {
            required: Some(message),
            ..self.declare(T::default(), "required".to_owned())
        }
    }

    /// Declares a setting without default, of a type that has no [`Default`].
    pub(super) fn required_some(self, message: &'static str) -> Declaration<Option<T>> {
        Declaration {
            required: Some(message),
            ..self.optional("required")
        }
    }

    fn optional(self, documented_default: &str) -> Declaration<Option<T>> {
        let Self { parse, print, .. } = self;
        let absent = || Value::String(String::new());
        let kind = Kind::new(
            move |raw| parse(raw).map(Some),
            move |value: &Option<T>| value.as_ref().map_or_else(absent, &print),
        )
        .limits(self.limits);
        kind.declare(None, documented_default.to_owned())
    }

    fn declare(self, default: T, documented_default: String) -> Declaration<T> {
        Declaration {
            kind: self,
            default,
            documented_default,
            required: None,
        }
    }
}

impl<T> Declaration<T> {
    /// Reads the setting. Returns the default if it is absent or invalid.
    pub(super) fn read(self, reader: &mut SectionReader<'_>, key: &str) -> T {
        let parsed = match (reader.take(key), self.required) {
            (Some(Ok(raw)), _) => (self.kind.parse)(raw),
            (Some(Err(message)), _) => invalid(message),
            (None, Some(message)) => invalid(message),
            (None, None) => return self.default,
        };
        parsed.unwrap_or_else(|errors| {
            for (suffix, message) in errors {
                reader.push_error(&format!("{key}{suffix}"), message);
            }
            self.default
        })
    }

    /// Describes the setting and its current value.
    pub(super) fn describe(
        &self,
        section: &str,
        name: &'static str,
        meaning: &str,
        value: &T,
    ) -> Setting {
        Setting {
            key: format!("{section}.{name}"),
            default: self.documented_default.clone(),
            limits: self.kind.limits.clone(),
            meaning: meaning.trim().to_owned(),
            name,
            value: (self.kind.print)(value),
        }
    }
}

/// One setting: its documentation and its current value.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Dotted key, such as `server.bind`.
    pub key: String,
    /// Default: a value in backticks, or a description such as `none`.
    pub default: String,
    /// Bounds of the value, or an empty string.
    pub limits: String,
    /// Meaning, in sentences.
    pub meaning: String,
    /// Key without its section.
    pub(super) name: &'static str,
    /// Current value, without secrets.
    pub(super) value: Value,
}

/// A section of the configuration.
pub(super) trait Section {
    /// Reads every setting of the section.
    fn read(reader: &mut SectionReader<'_>) -> Self
    where
        Self: Sized;

    /// Returns every setting of the section, in the order of their declaration.
    fn settings(&self, section: &str) -> Vec<Setting>;
}

impl Reader {
    /// Reads a section. Settings that are absent or invalid have their default.
    pub(super) fn section<S: Section>(&mut self, name: &str) -> S {
        S::read(&mut SectionReader { reader: self, name })
    }

    /// Reads every section `<parent>.<name>`, by name.
    pub(super) fn sections_in<S: Section>(&mut self, parent: &str) -> BTreeMap<String, S> {
        let names = self.names_in(parent).into_iter();
        names
            .map(|name| {
                let section = self.section(&format!("{parent}.{name}"));
                (name, section)
            })
            .collect()
    }
}

/// Declares the settings of a section. The name of a field is the key of its setting, and its doc
/// comment is the meaning in `docs/reference/configuration.md`. `impl` declares the settings of a
/// struct that is defined elsewhere.
macro_rules! section {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[doc = $meaning:literal])+ $key:ident: $type:ty = $declaration:expr,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone)]
        pub struct $name {
            $($(#[doc = $meaning])+ pub $key: $type,)+
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let mut debug = f.debug_struct(stringify!($name));
                for setting in self.settings("") {
                    debug.field(setting.name, &format_args!("{}", setting.value));
                }
                debug.finish()
            }
        }

        section! {
            impl $name { $($(#[doc = $meaning])+ $key = $declaration,)+ }
        }
    };
    (impl $name:ident { $($(#[doc = $meaning:literal])+ $key:ident = $declaration:expr,)+ }) => {
        impl Section for $name {
            fn read(reader: &mut SectionReader<'_>) -> Self {
                Self { $($key: $declaration.read(reader, stringify!($key)),)+ }
            }

            fn settings(&self, section: &str) -> Vec<Setting> {
                vec![$({
                    let meaning = concat!($($meaning),+);
                    $declaration.describe(section, stringify!($key), meaning, &self.$key)
                }),+]
            }
        }
    };
}

pub(super) use section;
