use proptest::prelude::*;
use published::bytes::BytesMut;
use published::{resp2, resp3};

use super::{MAX_DEPTH, check_depth};

/// A RESP value. `Aggregate` has the byte of its kind.
#[derive(Clone, Debug)]
enum Value {
    Line(String),
    Blob(u8, Vec<u8>),
    Null(&'static str),
    Aggregate(u8, Vec<Value>),
    /// Attributes, and the value that they describe.
    Attributes(Vec<Value>, Box<Value>),
}

impl Value {
    fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Line(line) => bytes.extend(format!("{line}\r\n").into_bytes()),
            Self::Blob(kind, data) => {
                bytes.push(*kind);
                bytes.extend(format!("{}\r\n", data.len()).into_bytes());
                bytes.extend(data);
                bytes.extend(b"\r\n");
            }
            Self::Null(null) => bytes.extend(null.as_bytes()),
            Self::Aggregate(kind, items) => {
                let pairs = if *kind == b'%' { 2 } else { 1 };
                bytes.push(*kind);
                bytes.extend(format!("{}\r\n", items.len() / pairs).into_bytes());
                items.iter().for_each(|item| item.encode(bytes));
            }
            Self::Attributes(items, value) => {
                bytes.extend(format!("|{}\r\n", items.len() / 2).into_bytes());
                items.iter().for_each(|item| item.encode(bytes));
                value.encode(bytes);
            }
        }
    }

    /// Returns the number of nested aggregates with items.
    fn depth(&self) -> usize {
        let inside = |items: &[Self]| items.iter().map(Self::depth).max();
        match self {
            Self::Line(_) | Self::Blob(..) | Self::Null(_) => 0,
            Self::Aggregate(_, items) => inside(items).map_or(0, |depth| depth + 1),
            Self::Attributes(items, value) => inside(items).unwrap_or(0).max(value.depth()) + 1,
        }
    }
}

fn bytes_of(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.encode(&mut bytes);
    bytes
}

/// Values around a chain of up to 40 aggregates, so that some are deeper than the limit.
fn values(is_resp3: bool) -> impl Strategy<Value = Value> {
    let data = || prop::collection::vec(any::<u8>(), 0..20);
    let text = "[a-z]{0,9}";
    let line = prop_oneof![
        text.prop_map(|text| Value::Line(format!("+{text}"))),
        text.prop_map(|text| Value::Line(format!("-{text}"))),
        any::<i64>().prop_map(|number| Value::Line(format!(":{number}"))),
    ];
    let leaf = if is_resp3 {
        prop_oneof![
            line,
            data().prop_map(|data| Value::Blob(b'$', data)),
            data().prop_map(|data| Value::Blob(b'!', data)),
            text.prop_map(|text| Value::Blob(b'=', format!("txt:{text}").into_bytes())),
            Just(Value::Line("#t".to_owned())),
            Just(Value::Line(",1.5".to_owned())),
            Just(Value::Line("(123".to_owned())),
            Just(Value::Null("_\r\n")),
        ]
        .boxed()
    } else {
        prop_oneof![
            line,
            data().prop_map(|data| Value::Blob(b'$', data)),
            Just(Value::Null("$-1\r\n")),
            Just(Value::Null("*-1\r\n")),
        ]
        .boxed()
    };
    let kinds: &[u8] = if is_resp3 { b"*>%|" } else { b"*" };
    let tree = leaf.prop_recursive(4, 40, 5, |inner| {
        prop::collection::vec(inner, 0..5).prop_map(|items| Value::Aggregate(b'*', items))
    });
    let chain = prop::collection::vec(prop::sample::select(kinds), 0..40);
    (tree, chain).prop_map(|(tree, chain)| chain.into_iter().fold(tree, wrap))
}

fn wrap(value: Value, kind: u8) -> Value {
    let key = Value::Line("+key".to_owned());
    match kind {
        b'%' => Value::Aggregate(kind, vec![key, value]),
        // Attributes must not describe attributes or null.
        b'|' if !matches!(value, Value::Attributes(..) | Value::Null(_)) => {
            Value::Attributes(vec![key.clone(), key], Box::new(value))
        }
        b'|' => Value::Attributes(vec![key.clone(), value], Box::new(key)),
        _ => Value::Aggregate(kind, vec![key, value]),
    }
}

proptest! {
    #[test]
    fn checked_depth_is_the_depth_of_the_value(value in values(true)) {
        let bytes = bytes_of(&value);
        prop_assert_eq!(check_depth(&bytes).is_ok(), value.depth() <= MAX_DEPTH);
    }

    #[test]
    fn incomplete_values_pass_if_complete_ones_do(value in values(true), end in any::<prop::sample::Index>()) {
        let bytes = bytes_of(&value);
        let part = &bytes[..end.index(bytes.len())];
        if value.depth() <= MAX_DEPTH {
            prop_assert!(check_depth(part).is_ok());
            let part = &mut BytesMut::from(part);
            prop_assert_eq!(crate::resp3::decode::streaming::decode_bytes_mut(part), Ok(None));
        }
    }

    #[test]
    fn resp2_values_decode_as_before(value in values(false)) {
        let (bytes, next) = (bytes_of(&value), b"+next\r\n");
        let buffer = BytesMut::from([&bytes[..], next].concat().as_slice());
        let (mut with_limit, mut without) = (buffer.clone(), buffer);
        let result = crate::resp2::decode::decode_bytes_mut(&mut with_limit);
        if value.depth() <= MAX_DEPTH {
            let published = resp2::decode::decode_bytes_mut(&mut without);
            prop_assert_eq!(&published.as_ref().unwrap().as_ref().unwrap().1, &bytes.len());
            prop_assert_eq!(result, published);
            prop_assert_eq!(&with_limit[..], next);
        } else {
            prop_assert!(result.is_err());
        }
    }

    #[test]
    fn resp3_values_decode_as_before(value in values(true)) {
        let (bytes, next) = (bytes_of(&value), b"+next\r\n");
        let buffer = BytesMut::from([&bytes[..], next].concat().as_slice());
        let (mut with_limit, mut without) = (buffer.clone(), buffer);
        let result = crate::resp3::decode::streaming::decode_bytes_mut(&mut with_limit);
        if value.depth() <= MAX_DEPTH {
            let published = resp3::decode::streaming::decode_bytes_mut(&mut without);
            prop_assert_eq!(&published.as_ref().unwrap().as_ref().unwrap().1, &bytes.len());
            prop_assert_eq!(result, published);
            prop_assert_eq!(&with_limit[..], next);
        } else {
            prop_assert!(result.is_err());
        }
    }

    #[test]
    fn decoders_agree_about_any_bytes(bytes in "([*$%~>|!=;_#,(.:+-]([?0-9-]{1,2})?(\r\n)?[a-z]{0,3}(\r\n)?){0,12}") {
        let mut buffer = BytesMut::from(bytes.as_bytes());
        prop_assert_eq!(
            crate::resp2::decode::decode_bytes_mut(&mut buffer.clone()).is_err(),
            resp2::decode::decode_bytes_mut(&mut buffer.clone()).is_err()
        );
        prop_assert_eq!(
            crate::resp3::decode::streaming::decode_bytes_mut(&mut buffer.clone()).is_err(),
            resp3::decode::streaming::decode_bytes_mut(&mut buffer).is_err()
        );
    }
}

/// Decodes with both protocols on a thread with the stack of a Tokio worker.
fn decode(bytes: Vec<u8>) -> (bool, bool) {
    let decode = move || {
        let mut buffer = BytesMut::from(bytes.as_slice());
        (
            crate::resp2::decode::decode_bytes_mut(&mut buffer.clone()).is_ok(),
            crate::resp3::decode::streaming::decode_bytes_mut(&mut buffer).is_ok(),
        )
    };
    let thread = std::thread::Builder::new().stack_size(2 << 20);
    thread.spawn(decode).unwrap().join().unwrap()
}

#[test]
fn maximum_depth_fits_on_the_stack_and_more_is_an_error() {
    let nested = |head: &str, depth| format!("{}:1\r\n", head.repeat(depth)).into_bytes();
    assert_eq!(decode(nested("*1\r\n", MAX_DEPTH)), (true, true));
    assert_eq!(decode(nested("*1\r\n", MAX_DEPTH + 1)), (false, false));
    assert_eq!(decode(nested("%1\r\n+a\r\n", MAX_DEPTH)), (false, true));
    for head in [
        "*1\r\n",
        "*2\r\n$2\r\n\r\n\r\n",
        "*+2\r\n_\r\n",
        "%1\r\n+a\r\n",
        "~01\r\n",
        ">1\r\n",
        "|1\r\n",
        "|1\r\n+a\r\n",
        "|0\r\n*1\r\n",
        "*9\r\n*0\r\n!4\r\n*1\r\n\r\n=5\r\ntxt:*\r\n*-1\r\n",
    ] {
        let (resp2, resp3) = decode(nested(head, 1_000_000));
        assert!(!resp3 && !resp2, "{head:?}");
    }
}

#[test]
fn only_the_first_frame_is_checked() {
    let deep = "*1\r\n".repeat(1000);
    for first in [
        "+a\r\n",
        "*?\r\n",
        "$?\r\n",
        ";0\r\n",
        ";2\r\n*1\r\n",
        ".\r\n",
        "$-1\r\n",
        "*-1\r\n",
        "*2\r\n*0\r\n:1\r\n",
    ] {
        assert_eq!(
            check_depth(format!("{first}{deep}").as_bytes()),
            Ok(()),
            "{first:?}"
        );
    }
}
