//! Pages of long lists: `limit`, `marker`, and the link to the next page.

use cloud::Error;

use crate::body::Pairs;

/// What part of a list a client asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The most items that it wants.
    pub limit: Option<usize>,
    /// The id of the last item that it has.
    pub marker: Option<String>,
}

impl Page {
    /// Reads `limit` and `marker`; no page is longer than `max`, also where the client names no limit.
    ///
    /// # Errors
    /// 400 if the limit is not a number.
    pub fn of(pairs: &Pairs, max: usize) -> Result<Page, Error> {
        let limit = pairs
            .number("limit")?
            .map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let limit = Some(limit.unwrap_or(max).min(max));
        Ok(Page {
            limit,
            marker: pairs.get("marker").filter(|m| !m.is_empty()).map(str::to_owned),
        })
    }

    /// Cuts the page out of the whole, sorted list. Beside it: the marker of the next page, if there is one.
    ///
    /// # Errors
    /// 400 if the marker is not in the list.
    pub fn cut<T>(
        &self,
        items: Vec<T>,
        id: impl Fn(&T) -> String,
    ) -> Result<(Vec<T>, Option<String>), Error> {
        let start = match &self.marker {
            None => 0,
            Some(marker) => {
                let at = items.iter().position(|item| &id(item) == marker);
                at.ok_or_else(|| Error::BadRequest(format!("marker [{marker}] not found")))? + 1
            }
        };
        let limit = self.limit.unwrap_or(usize::MAX);
        let more = items.len() - start > limit;
        let page: Vec<T> = items.into_iter().skip(start).take(limit).collect();
        let next = if more { page.last().map(id) } else { None };
        Ok((page, next))
    }
}

/// The address of the page after `marker`: this one's, with its marker replaced. `path` has no query.
pub fn next_link(path: &str, pairs: &Pairs, marker: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs.0.iter().filter(|(key, _)| key != "marker"));
    query.append_pair("marker", marker);
    format!("{path}?{}", query.finish())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_zero_limit_is_an_empty_page_and_a_wrong_marker_an_error() {
        let page = Page::of(&Pairs::parse("limit=0"), 10).unwrap();
        assert_eq!(page.cut(vec![1, 2], |i| i.to_string()).unwrap(), (vec![], None));
        let page = Page::of(&Pairs::parse("marker=7"), 10).unwrap();
        assert!(page.cut(vec![1, 2], |i| i.to_string()).is_err());
        assert!(Page::of(&Pairs::parse("limit=-1"), 10).is_err());
    }

    #[test]
    fn the_link_keeps_filters() {
        let pairs = Pairs::parse("limit=2&name=a%26b&marker=old");
        assert_eq!(
            next_link("/v2/images", &pairs, "new"),
            "/v2/images?limit=2&name=a%26b&marker=new"
        );
    }

    proptest! {
        #[test]
        fn following_the_markers_sees_every_item_once(count in 0usize..60, limit in 1usize..20, max in 1usize..20) {
            let all: Vec<usize> = (0..count).collect();
            let mut seen = Vec::new();
            let mut page = Page { limit: Some(limit.min(max)), marker: None };
            loop {
                let (items, next) = page.cut(all.clone(), |i| i.to_string()).unwrap();
                prop_assert!(items.len() <= limit.min(max));
                seen.extend(items);
                match next {
                    Some(marker) => page.marker = Some(marker),
                    None => break,
                }
            }
            prop_assert_eq!(seen, all);
        }
    }
}
