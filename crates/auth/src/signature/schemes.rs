//! One scheme or several, of which a webhook must satisfy one.
//!
//! Invariant: what proves nothing is never an alternative to what proves something.

use std::fmt;
use std::ops::Deref;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::Scheme;

/// How a provider proves its webhooks: in its spec one table, or a list of them. At least one.
#[derive(Debug, Clone)]
pub struct Schemes(Vec<Scheme>);

impl Deref for Schemes {
    type Target = [Scheme];

    fn deref(&self) -> &[Scheme] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Schemes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrSeveral)
    }
}

struct OneOrSeveral;

impl<'de> Visitor<'de> for OneOrSeveral {
    type Value = Schemes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table, or a list of tables")
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Schemes, A::Error> {
        Scheme::deserialize(MapAccessDeserializer::new(table)).map(|one| Schemes(vec![one]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Schemes, A::Error> {
        let schemes: Vec<Scheme> = Vec::deserialize(SeqAccessDeserializer::new(list))?;
        let has_none = schemes.iter().any(|one| matches!(one, Scheme::None {}));
        match schemes.len() {
            0 => Err(A::Error::custom("signature: at least one scheme")),
            2.. if has_none => Err(A::Error::custom(
                "signature: 'none' proves nothing, so it can't be one of several schemes",
            )),
            _ => Ok(Schemes(schemes)),
        }
    }
}
