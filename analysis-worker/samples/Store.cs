using System;
using static System.Math;
using Text = System.Text.StringBuilder;

namespace Example.Stores
{
    /// <summary>Keeps items.</summary>
    [Serializable]
    public sealed class Store<T> : Base, IKeeper<T> where T : Item
    {
        private const int Limit = 8;
        private readonly List<T> items = new List<T>(), others;
        public event EventHandler Opened;
        public int Size { get; private set; }
        public string Name => items.ToString();

        public Store(string path) : base(path) { Size = Max(1, 2); }

        public T this[int index] => items[index];

        // Keeps one.
        public async Task<bool> Keep(T item)
        {
            int Local(int x) => x + 1;
            items?.Add(item);
            return await Task.Run<bool>(() => Local(1) > 0);
        }
    }

    public interface IKeeper<T> { Task<bool> Keep(T item); }
    public struct Point { public int X; }
    public enum State { Open, Closed = 2 }
    public record Pair(int A, int B);
    public delegate void Handler(object sender);
}
