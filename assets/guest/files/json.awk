# Flattens JSON to lines of PATH<TAB>VALUE, such as `public_keys/mine<TAB>ssh-ed25519 AAAA…`. Ends with status 1 on
# what is no JSON.

{ text = text $0 "\n" }

function fail() { bad = 1; exit 1 }

function space() { sub(/^[ \t\r\n]+/, "", text) }

function take(n,    taken) { taken = substr(text, 1, n); text = substr(text, n + 1); return taken }

function string(    raw, out, c) {
    if (!match(text, /^"([^"\\]|\\.)*"/)) fail()
    raw = take(RLENGTH)
    raw = substr(raw, 2, length(raw) - 2)
    out = ""
    while ((i = index(raw, "\\")) > 0) {
        out = out substr(raw, 1, i - 1)
        c = substr(raw, i + 1, 1)
        raw = substr(raw, i + 2)
        if (c == "n" || c == "t" || c == "r") out = out " "
        else if (c == "u") {
            # Keys, names and identifiers are ASCII; what is not becomes a question mark.
            c = substr(raw, 1, 4)
            raw = substr(raw, 5)
            out = out (substr(c, 1, 2) == "00" ? sprintf("%c", hex(substr(c, 3))) : "?")
        } else if (c != "b" && c != "f") out = out c
    }
    return out raw
}

function hex(digits,    value, k) {
    value = 0
    for (k = 1; k <= length(digits); k++) value = value * 16 + index("0123456789abcdef", tolower(substr(digits, k, 1))) - 1
    return value
}

function value(path,    n, key) {
    space()
    if (text ~ /^"/) print path "\t" string()
    else if (text ~ /^\{/) {
        take(1); space()
        if (text ~ /^\}/) { take(1); return }
        while (1) {
            space(); key = string(); space()
            if (take(1) != ":") fail()
            value(path == "" ? key : path "/" key)
            space(); n = take(1)
            if (n == "}") return
            if (n != ",") fail()
        }
    } else if (text ~ /^\[/) {
        take(1); space()
        if (text ~ /^\]/) { take(1); return }
        n = 0
        while (1) {
            value(path "/" n++)
            space(); key = take(1)
            if (key == "]") return
            if (key != ",") fail()
        }
    } else if (match(text, /^(true|false|null|-?[0-9][0-9.eE+-]*)/)) print path "\t" take(RLENGTH)
    else fail()
}

END { if (!bad) value(""); exit bad }
