"""Chat templates render as intended, and cannot escape or exceed their limits."""

import concurrent.futures
import datetime
import pathlib
import re
import time

import pytest

from prm_jax.errors import UserError
from prm_jax.models import chat, render_chat
from prm_jax.models.child_process import ChildProcess

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"}]
CHATML = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


class TestRendering:
    def test_by_hand(self):
        said = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 3?<|im_end|>\n"
        assert render_chat(CHATML, MESSAGES) == said + "<|im_start|>assistant\n"
        assert render_chat(CHATML, MESSAGES, add_generation_prompt=False) == said

    @pytest.mark.parametrize(
        ("template", "text"),
        [
            ("{{ bos_token }}{{ messages[0].content }}", "<s>Be brief."),
            ("{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}\n", "x\nx\n"),  # trim, lstrip
            ("{{ tools is none }}{{ undefined_name is defined }}{{ also_undefined }}", "TrueFalse"),
            ("{{ {'b': '<é>', 'a': [1, none]} | tojson }}", '{"b": "<é>", "a": [1, null]}'),
            ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}", "user"),
            ("{% generation %}{{ messages[1].content }}{% endgeneration %}!", "2 + 3?!"),
            ("{% set n = namespace(n=0) %}{% for m in messages %}{% set n.n = n.n + 1 %}{% endfor %}{{ n.n }}", "2"),
            ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(10000000) }}", "[10000000]"),
            ("{{ 'a' ~ 1 ~ none }}{{ 'x' * 3 }}", "a1Nonexxx"),
            ("{{ '%s-%d' % ('y', 2000000) }} {{ '{:.2f}'.format(2.5) }}", "y-2000000 2.50"),
            ("{{ messages | map(attribute='role') | join(', ') }}{{ ' a '.strip() }}", "system, usera"),
            ("{{ strftime_now('%d %b %Y') }}", "02 Jan 2030"),
            ("{{ enable_thinking }}", "False"),
        ],
    )  # fmt: skip
    def test_what_templates_use(self, template, text):
        rendered = render_chat(
            template,
            MESSAGES,
            special_tokens={"bos_token": "<s>"},
            variables={"enable_thinking": False},
            now=datetime.datetime(2030, 1, 2),
        )
        assert rendered == text

    def test_messages_are_copied(self):
        with pytest.raises(UserError, match="SecurityError"):
            render_chat("{{ messages[0].update({'content': 'x'}) }}", MESSAGES)
        assert MESSAGES[0]["content"] == "Be brief."

    def test_in_threads(self):
        def render(i: int) -> str:
            return render_chat(CHATML, [{"role": "user", "content": str(i)}], add_generation_prompt=False)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            texts = list(pool.map(render, range(40)))
        assert texts == [f"<|im_start|>user\n{i}<|im_end|>\n" for i in range(40)]

    def test_lone_surrogates_and_every_plane(self):
        content = "a\ud800 \N{ROBOT FACE} \x00 \u2028"
        assert render_chat("{{ messages[0].content }}", [{"role": "user", "content": content}]) == content


class TestRefusals:
    @pytest.mark.parametrize(
        ("messages", "problem"),
        [
            ("hello", "must be a list"),
            ({"role": "user", "content": "x"}, "must be a list"),
            (["hello"], r"messages\[0\]: expected a mapping with a role"),
            ([{"content": "x"}], r"messages\[0\]: expected a mapping with a role"),
            ([*MESSAGES, {"role": "user", "content": None}], r"messages\[2\] \(user\): content must be text"),
        ],
    )
    def test_malformed_messages(self, messages, problem):
        with pytest.raises(UserError, match=problem):
            render_chat(CHATML, messages)

    def test_refusals_by_the_template(self):
        with pytest.raises(UserError, match="refuses this conversation: roles must alternate"):
            render_chat("{{ raise_exception('roles must alternate') }}", MESSAGES)

    @pytest.mark.parametrize(
        "template", ["{% for %}", "{{ 1 +", "{% unknown %}", "{{" + "(" * 3000 + ")" * 3000 + "}}"]
    )
    def test_templates_that_do_not_compile(self, template):
        with pytest.raises(UserError, match="does not compile"):
            render_chat(template, MESSAGES)

    def test_missing_variable(self):
        with pytest.raises(UserError, match="'system' is undefined"):
            render_chat("{{ system.content }}", MESSAGES)

    @pytest.mark.parametrize(
        "template",
        [
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ cycler.__init__.__globals__.os.system('id') }}",
            "{{ messages.__class__ }}",
            "{{ self.__init__.__globals__ }}",
            "{{ raise_exception.__globals__ }}",
            "{{ strftime_now.__self__.__class__ }}",
            "{{ (lipsum | string).__class__ }}",
            "{{ messages.append({}) }}",
            "{% include '/etc/passwd' %}",
            "{% import 'os' as os %}",
            "{{ '' | attr('__class__') }}",
            "{{ '{0.__class__}'.format('') }}",
        ],
    )
    def test_templates_reach_no_python_objects(self, template):
        # The sandbox makes private attributes undefined: nothing when written, an error when used.
        try:
            assert render_chat(template, MESSAGES) == ""
        except UserError:
            pass


# Templates that take time or memory out of all proportion, many of them in a single call into C.
ATTACKS = {
    "loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "loops over a list": "{% set r = range(100000) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "padded items": "{{ range(100000) | map('string') | map('center', 10000) | list | length }}" * 50,
    "output": "{% for i in range(100000) %}{{ 'a' * 100000 }}{% endfor %}",
    "repeat": "{{ 'a' * 10**9 }}",
    "repeat in two steps": "{{ 10**5 * 'ab' * 10000 }}",
    "repeat a list": "{{ [0] * 100000000 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "power of a float": "{{ (10.0 ** 300) | int ** 100000 }}",
    "digits of a power": "{{ (7 ** 3000000) | string }}",
    "doubling": "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by ~": "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "squaring": "{% set ns = namespace(x=7) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "growing list": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "nested tuples": "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}"
    "{{ ns.x | string | length }}",
    "nested lists as JSON": "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% endfor %}{{ ns.x | tojson }}",
    "comparing nested tuples": "{% set ns = namespace(x=1, y=1) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}"
    "{% set ns.y = (ns.y, ns.y) %}{% endfor %}{{ ns.x == ns.y }}",
    "hash of nested tuples": "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}"
    "{% endfor %}{{ {ns.x: 1} }}",
    "deep list": "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}"
    "{{ ns.x | tojson }}",
    "round": "{{ 3.7 | round(10**9, 'floor') }}",
    "round an integer": "{{ 12345 | round(-10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "indent": "{{ 'a\\nb' | indent(1000000000) }}",
    "expandtabs": "{{ ('\\t' * 100000).expandtabs(100000) }}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format, nested": "{{ '{:{}}'.format(1, 1000000000) }}",
    "replace filter": "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
    "replace": "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
    "join filter": "{{ range(100000) | join('x' * 100000) }}",
    "join": "{{ ('x' * 100000).join(messages | map(attribute='role') | list * 1000) }}",
    "translate": "{{ ('a' * 10000).translate({97: 'x' * 100000}) }}",
    "to_bytes": "{{ (5).to_bytes(1000000000, 'big') }}",
    "range": "{{ range(10**9) | list }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "tojson indent": "{{ messages | tojson(indent=100000000) }}",
    "wordwrap": "{{ ('a ' * 200000) | wordwrap(1, wrapstring='b' * 10000) }}",
    "batch": "{{ range(10) | batch(100000000, 'x') | list | length }}",
    "slice": "{{ range(10) | slice(1000000000) | list | length }}",
    "sum of lists": "{{ ([[1] * 100000] * 10000) | sum(start=[]) | length }}",
    "sort": "{{ (range(100000) | list * 100) | sort | length }}",
    "unique": "{% for i in range(10000) %}{{ range(100000) | unique | list | length }}{% endfor %}",
    "urlize": "{{ ('http://a.b ' * 300000) | urlize }}",
    "striptags": "{{ ('<' * 5000000) | striptags }}",
    "pprint": "{{ ([[1] * 1000] * 10000) | pprint | length }}",
    "filesizeformat": "{{ (10 ** 400) | filesizeformat }}",
    "int of many digits": "{{ ('9' * 3000000) | int }}",
    "strftime": "{{ strftime_now('%Y' * 1000000) }}",
}


CHEAP = {"int of many digits"}  # which Python refuses by itself


class TestLimits:
    """The process that renders is limited in time and memory: no template hangs or kills this one."""

    @pytest.mark.parametrize("name", ATTACKS)
    def test_attacks_end_soon(self, name):
        start = time.monotonic()
        try:
            render_chat(ATTACKS[name], MESSAGES, max_seconds=0.3, max_output=100_000)
            cheap = True
        except UserError as error:
            assert str(error).startswith("the chat template failed") and len(str(error)) < 600
            cheap = False
        assert time.monotonic() - start < 20  # on a busy machine; the limit is one of processor time
        assert not cheap or name in CHEAP

    def test_the_process_is_killed_and_replaced(self):
        with pytest.raises(UserError, match="it ran for more than 0.1 seconds"):
            render_chat(ATTACKS["power"], MESSAGES, max_seconds=0.1)
        assert render_chat("{{ messages[0].role }} again", MESSAGES) == "system again"

    def test_memory(self):
        with pytest.raises(UserError, match="failed .MemoryError.|crashed or ran out of memory"):
            render_chat(ATTACKS["repeat a list"], MESSAGES)

    def test_output(self):
        with pytest.raises(UserError, match="it wrote more than 1000 characters"):
            render_chat("{% for i in range(1000) %}ab{% endfor %}", MESSAGES, max_output=1000)

    def test_size_of_the_source(self):
        with pytest.raises(UserError, match="expected at most"):
            render_chat("x" * 1_000_001, MESSAGES)

    def test_a_long_conversation_is_fine(self):
        messages = [{"role": "user", "content": "word " * 10_000}] * 20
        assert len(render_chat(CHATML, messages)) > 1_000_000

    def test_no_files_are_written_and_the_environment_is_not_passed_on(self, monkeypatch):
        monkeypatch.setenv("PRM_JAX_SECRET", "s3cret")
        worker = ChildProcess(pathlib.Path(chat.__file__).with_name("chat_worker.py"), memory_bytes=256 << 20)
        worker.ask({"template": "", "context": {}, "now": "2030-01-01", "max_output": 1}, seconds=1, max_reply=1000)
        pid = worker._process.pid
        assert b"s3cret" not in pathlib.Path(f"/proc/{pid}/environ").read_bytes()
        limits = pathlib.Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max file size +0 +0", limits) and re.search(r"Max address space +268435456", limits)
        worker.close()
        assert not pathlib.Path(f"/proc/{pid}").exists()


class TestCache:
    def test_the_same_conversation_is_rendered_once(self, monkeypatch):
        asked = []
        ask = ChildProcess.ask
        monkeypatch.setattr(ChildProcess, "ask", lambda self, *a, **k: asked.append(1) or ask(self, *a, **k))
        for _ in range(3):
            render_chat(CHATML + "{# cached #}", MESSAGES)
        render_chat(CHATML + "{# cached #}", MESSAGES, add_generation_prompt=False)
        assert len(asked) == 2

    def test_a_template_that_asks_for_the_time_is_rendered_again(self):
        early, late = (datetime.datetime(2030, 1, day) for day in (1, 2))
        template = "{{ strftime_now('%d') }}"
        assert [render_chat(template, MESSAGES, now=now) for now in (early, late, early)] == ["01", "02", "01"]

    def test_values_that_are_not_json(self):
        with pytest.raises(UserError, match="must be JSON values"):
            render_chat(CHATML, MESSAGES, variables={"tools": object()})
