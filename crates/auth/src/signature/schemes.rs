//! One or more schemes. A webhook must pass one of them.
//!
//! `none` cannot be combined with other schemes, because every request would pass.

use std::fmt;
use std::ops::Deref;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::Scheme;

/// The schemes of a provider definition: one table, or a list of tables. Never empty.
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
        f.write_str("a table or a list of tables")
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Schemes, A::Error> {
        Scheme::deserialize(MapAccessDeserializer::new(table)).map(|one| Schemes(vec![one]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Schemes, A::Error> {
        let schemes: Vec<Scheme> = Vec::deserialize(SeqAccessDeserializer::new(list))?;
        let has_none = schemes.iter().any(|one| matches!(one, Scheme::None {}));
        match schemes.len() {
            0 => Err(A::Error::custom(
                "signature: at least one scheme is required",
            )),
            2.. if has_none => Err(A::Error::custom(
                "signature: 'none' cannot be combined with other schemes",
            )),
            _ => Ok(Schemes(schemes)),
        }
    }
}
