//! The scripts: every change that has to be one step.
//!
//! Invariant: a script touches one partition, and says itself what it takes and answers.

use std::sync::LazyLock;

use super::connection::Script;

macro_rules! scripts {
    ($($name:ident = $file:literal),* $(,)?) => {
        $(pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(include_str!(concat!("lua/", $file))));)*
    };
}

scripts! {
    BOOK = "book.lua",
    CLAIM_NAME = "claim_name.lua",
    CLAIM_SUBMIT = "claim_submit.lua",
    CLAIM_WATCH = "claim_watch.lua",
    COMMIT = "commit.lua",
    CREATE = "create.lua",
    DROP_NAME = "drop_name.lua",
    FORGET = "forget.lua",
    HASTEN = "hasten.lua",
    LIST = "list.lua",
    PARK = "park.lua",
    READ = "read.lua",
    REMEMBER = "remember.lua",
    SECURE = "secure.lua",
    SETTLE_PLACE = "settle_place.lua",
    TAKE_PLACES = "take_places.lua",
    UNPARK = "unpark.lua",
    VOID = "void.lua",
}
