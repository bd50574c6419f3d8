#!/usr/bin/env python3
"""Which Debian packages the demo corpus is made of, and which of their files.

usage: sources.py      prints the packages' names, for fetch.sh

SOURCES[domain] is a list of (package, pattern of the files' paths, how the text is taken out of them); the ways are the
functions of text_formats.py. `fr` is no domain of the demo model: it is there to be grafted.
"""

HTML = r"\.x?html?(\.gz)?$"
CPP_FILES = r"\.(h|hh|hpp|hxx|ipp|cc|cpp|cxx|tcc)$|/c\+\+/12/[\w./]+$"

SOURCES = {
    "zh": [
        ("linux-doc-6.1", r"/html/translations/zh_(CN|TW)/.*\.html$|sources/translations/zh", "html"),
        ("libreoffice-help-zh-cn", HTML, "html"),
        ("libreoffice-help-zh-tw", HTML, "html"),
        ("kicad-doc-zh", r"/zh/.*\.html$", "html"),
        ("linuxcnc-doc-zh-cn", r"(zh_CN|zh).*\.html$", "html"),
        ("maint-guide-zh-cn", HTML, "html"),
        ("maint-guide-zh-tw", HTML, "html"),
        ("manpages-zh", r"/man/zh_(CN|TW)/", "man"),
        ("debian-handbook", r"/zh-(CN|TW)/.*\.html$", "html"),
        ("debian-reference-zh-cn", HTML, "html"),
        ("debian-reference-zh-tw", HTML, "html"),
        ("debian-edu-doc-zh-cn", HTML, "html"),
        ("debian-edu-doc-legacy-zh-cn", HTML, "html"),
        ("debian-faq-zh-cn", HTML, "html"),
        ("fortunes-zh", r"fortunes/(tang300|song100|chinese)$", "fortune"),
        ("gnome-user-docs", r"/help/zh_(CN|TW|HK)/.*\.page$", "html"),
        ("installation-guide-amd64", r"/zh_(CN|TW)/.*\.html$", "html"),
        ("gitmagic", r"zh.*\.html$", "html"),
        ("gimp-help-zh-cn", HTML, "html"),
        ("lilypond-doc-html-zh", HTML, "html"),
        ("wesnoth-1.16-data", r"/zh_(CN|TW)/.*\.mo$", "translations"),
        ("wesnoth-1.16-data", r"/translations/zh_CN/.*\.mo$", "translations"),
        ("inkscape", r"/zh_CN/.*\.mo$", "translations"),
        ("blender-data", r"zh_(CN|HANS).*\.mo$", "translations"),
        ("evolution-common", r"/zh_CN/.*\.mo$", "translations"),
        ("lyx-common", r"/zh_CN/.*\.mo$", "translations"),
        ("krita-l10n", r"/zh_CN/.*\.mo$", "translations"),
    ],
    "en": [
        ("sword-comm-tdavid", "", "sword"),
        ("sword-comm-scofield", "", "sword"),
        ("sword-text-web", "", "sword"),
        ("sword-dict-naves", "", "sword"),
        ("anarchism", r"\.(txt|html)(\.gz)?$", "html"),
        ("fortunes", r"fortunes/[\w-]+$", "fortune"),
        ("miscfiles", r"misc/", "plain"),
        ("doc-debian", r"\.(txt|html)(\.gz)?$", "html"),
        ("developers-reference", r"/developers-reference/[\w-]+\.html$", "html"),
        ("debian-kernel-handbook", HTML, "html"),
        ("jargon-text", r"\.txt(\.gz)?$", "plain"),
        ("python3.11-doc", r"/(tutorial|howto|library|reference|faq|using|extending|whatsnew)/.*\.html$", "html"),
        ("postgresql-doc-15", HTML, "html"),
        ("sqlite3-doc", HTML, "html"),
        ("libreoffice-help-en-us", HTML, "html"),
        ("git-doc", HTML, "html"),
        ("apache2-doc", r"/en/.*\.html$|\.html\.en$", "html"),
        ("manpages", r"/man/man", "man"),
        ("manpages-dev", r"/man/man", "man"),
        ("perl-doc", r"\.pod$", "plain"),
        ("debian-reference-en", HTML, "html"),
        ("python-django-doc", r"\.html$", "html"),
        ("debian-handbook", r"/en-US/.*\.html$", "html"),
        ("gnome-user-docs", r"/help/C/.*\.page$", "html"),
        ("installation-guide-amd64", r"/en/.*\.html$", "html"),
        ("linux-doc-6.1", r"/html/(?!translations).*\.html$", "html"),
        ("wesnoth-1.16-data", r"/zh_CN/.*\.mo$", "originals"),
    ],
    "cpp": [(package, CPP_FILES, "code") for package in """
        libboost1.74-dev libstdc++-12-dev libeigen3-dev libcgal-dev llvm-14-dev qtbase5-examples
        qtdeclarative5-examples wx3.2-examples libdlib-dev libcrypto++-dev juce-modules-source libabsl-dev googletest
        catch2 libfltk1.3-dev libsfml-doc libtorch-dev libpcl-dev libvtk9-dev libdeal.ii-dev nlohmann-json3-dev
        libfmt-dev""".split()],
    "python": [(package, r"\.py$", "code") for package in """
        libpython3.11-stdlib libpython3.11-testsuite python3-django python3-sympy python3-scipy python3-pandas
        python3-matplotlib python3-sklearn python3-statsmodels python3-networkx python3-twisted python3-sqlalchemy
        python3-nltk mercurial-common python3-breezy ansible-core python3-astropy python3-nova python3-neutron
        python3-pip yt-dlp""".split()],
    "fr": [
        ("manpages-fr", r"/man/fr/", "man"),
        ("manpages-fr-dev", r"/man/fr/", "man"),
    ],
}

if __name__ == "__main__":
    print(*sorted({package for sources in SOURCES.values() for package, _, _ in sources}), sep="\n")
