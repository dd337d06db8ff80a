//! The dialects of all providers, one file each.
//!
//! The file of a provider maps its requests to operations of a [`Call`].

mod atlas;
mod fal;
mod kling;
mod minimax;
mod replicate;
mod runway;
mod videos;

use futures_util::future::LocalBoxFuture;

use super::call::Call;
use super::dialect::{Answer, Dialect};

/// A dialect, and the function that handles its calls. The function returns `NoSuchMethod` for an unknown method or
/// path.
pub(super) type Provider = (
    &'static Dialect,
    for<'a> fn(&'a Call<'a>) -> LocalBoxFuture<'a, Answer>,
);

/// All providers. The first one is also served without a prefix.
pub(super) static PROVIDERS: [Provider; 7] = [
    (&kling::KLING, |call| Box::pin(kling::answer(call))),
    (&fal::FAL, |call| Box::pin(fal::answer(call))),
    (&atlas::ATLAS, |call| Box::pin(atlas::answer(call))),
    (&videos::VIDEOS, |call| Box::pin(videos::answer(call))),
    (&minimax::MINIMAX, |call| Box::pin(minimax::answer(call))),
    (&runway::RUNWAY, |call| Box::pin(runway::answer(call))),
    (&replicate::REPLICATE, |call| {
        Box::pin(replicate::answer(call))
    }),
];

/// Returns the provider whose dialect is the first segment of a path, otherwise the first one.
pub(super) fn find(path: &str) -> Provider {
    let name = path.split('/').nth(1);
    let mut providers = PROVIDERS.iter();
    *providers
        .find(|(dialect, _)| name == Some(dialect.name))
        .unwrap_or(&PROVIDERS[0])
}
