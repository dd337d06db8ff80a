//! The clip that every task outputs: five seconds of a sunrise with a progress bar.
//!
//! Every number returns the same bytes. Ranges and CORS are supported, so that browsers can play and seek it. The clip
//! was made with this command:
//!
//! ```sh
//! S='st(0,T/5.04);st(1,hypot(X-240,Y-205+120*ld(0)));st(5,lt(ld(1),24));st(6,exp((24-ld(1))/50))
//!   ;st(2,lt(Y,165+14*sin(X/61+T/3)+7*sin(X/23)));st(3,lt(Y,200+12*sin(X/47+T/1.6+2)+6*sin(X/17+1)))
//!   ;st(4,lt(Y,232+9*sin(X/39+T+4)));st(7,between(X,20,460)*between(Y,254,259));st(8,lt(X,20+440*ld(0)))'
//! ffmpeg -y -f lavfi -i "nullsrc=s=480x270:r=24,format=gbrp,geq=
//!   r='$S;if(ld(7),if(ld(8),255,70),if(ld(2),min(255,20+Y*(0.25+0.9*ld(0))+if(ld(5),200,170*ld(6))),
//!      if(ld(3),70+60*ld(0),if(ld(4),44+28*ld(0),22))))':
//!   g='$S;if(ld(7),if(ld(8),190,60),if(ld(2),min(235,24+60*ld(0)+Y*(0.12+0.45*ld(0))+if(ld(5),150,80*ld(6))),
//!      if(ld(3),52+50*ld(0),if(ld(4),34+26*ld(0),20))))':
//!   b='$S;if(ld(7),if(ld(8),110,90),if(ld(2),min(225,70+80*ld(0)+Y*0.2+if(ld(5),60,20*ld(6))),
//!      if(ld(3),104+30*ld(0),if(ld(4),70+20*ld(0),42))))'" -frames:v 121 -c:v libx264 -profile:v baseline \
//!   -preset veryslow -crf 30 -pix_fmt yuv420p -movflags +faststart clip.mp4
//! ```

use actix_web::http::header::{
    self, ByteRangeSpec, ContentRange, ContentRangeSpec, Header, IF_RANGE, Range,
};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse};

static CLIP: &[u8] = include_bytes!("clip.mp4");
/// Size of the clip in bytes.
pub(super) const LENGTH: usize = include_bytes!("clip.mp4").len();

/// Returns the requested part of the clip.
pub(super) fn serve(request: &HttpRequest) -> HttpResponse {
    let length = CLIP.len() as u64;
    let range = requested_range(request).map(|range| range.to_satisfiable_range(length));
    let (mut response, body) = match range {
        None => (HttpResponse::Ok(), CLIP),
        Some(Some((first, last))) => {
            let part = CLIP.get(first as usize..=last as usize);
            (HttpResponse::PartialContent(), part.unwrap_or_default())
        }
        Some(None) => (HttpResponse::RangeNotSatisfiable(), &[][..]),
    };
    if let Some(range) = range {
        response.insert_header(ContentRange(ContentRangeSpec::Bytes {
            range,
            instance_length: Some(length),
        }));
    }
    response
        .insert_header((header::CONTENT_TYPE, "video/mp4"))
        .insert_header((header::ACCEPT_RANGES, "bytes"))
        .insert_header((header::CACHE_CONTROL, "public, max-age=3600"))
        .insert_header((header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"))
        .insert_header((
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            "content-length, content-range",
        ))
        .insert_header(("cross-origin-resource-policy", "cross-origin"))
        .body(Bytes::from_static(body))
}

/// Parses the `Range` header. An invalid range, several ranges and `If-Range` select the whole clip.
fn requested_range(request: &HttpRequest) -> Option<ByteRangeSpec> {
    if request.headers().contains_key(IF_RANGE) {
        return None;
    }
    match Range::parse(request).ok()? {
        Range::Bytes(ranges) => <[_; 1]>::try_from(ranges).ok().map(|[range]| range),
        Range::Unregistered(..) => None,
    }
}
